"""Serve a static reply with the server of `serve`: the same headers and bytes for every request.

`python -m tests.bench.static_reply PORT BODY_FILE`. Our pages are compared with it: it does no work to find its reply.
"""

import asyncio
import sys
from pathlib import Path

from starlette.types import Receive, Scope, Send

from feeds.endpoint.answer import JSON_HEADERS
from worker.commands import serve


class StaticReply:
    """An ASGI app without a framework."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.headers = [*JSON_HEADERS, (b"etag", b'"' + b"x" * 24 + b'"'), (b"content-length", b"%d" % len(body))]

    def stop(self) -> None:
        """Do nothing: the benchmark has no requests under way when it stops the server."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


if __name__ == "__main__":
    asyncio.run(serve.run(StaticReply(Path(sys.argv[2]).read_bytes()), "127.0.0.1", int(sys.argv[1]), 0))
