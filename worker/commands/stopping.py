"""How does the endpoint stop without failing a request?

A load balancer reads in `/readyz` that the endpoint stops, and a client that keeps its connection alive reads
`Connection: close` in its next answer. Both take time, so the endpoint goes on accepting for a while.
"""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import click
from granian.server.embed import Server

from feeds.endpoint.asgi import App

CONNECTING_S = 0.5
"""How long a connection may take from its first packet to its first request, after new ones are refused."""
ANSWER_WITHIN_S = 8.0
SO_ATTACH_FILTER = 26
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
    (0x45, 0, 1, 0x02),  # SYN is set: go to the next line, else skip it
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # take it whole
)
"""A socket filter of Linux, one instruction a line: code, jump if true, jump if false, operand."""


async def stop_at_signal(app: App, server: Server, serving: asyncio.Task[None], port: int, accept_for_s: float) -> None:
    """Wait for a signal, then stop the server step by step. SIGINT skips the first wait, a second signal all of them.

    Args:
        app: Adds `Connection: close` to its answers once it stops.
        server: Stops accepting, closes idle connections and answers the requests under way.
        serving: The server's task. It is cancelled if requests are still under way in the end.
        port: The server's.
        accept_for_s: How long connections are still accepted.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    first = await signals.get()
    app.stop()
    if first is signal.SIGINT:
        accept_for_s = 0
    click.echo(f"The endpoint stops. It accepts connections for {accept_for_s:g} s more.")
    for wait_s, step in (
        (accept_for_s, lambda: refuse_connections(port)),
        (CONNECTING_S, server.stop),
        (ANSWER_WITHIN_S, lambda: click.echo("Some requests take too long: they are cut off.", err=True)),
    ):
        try:
            await asyncio.wait_for(signals.get(), wait_s)
        except TimeoutError:
            step()
        else:
            break
    serving.cancel()


def refuse_connections(port: int) -> None:
    """Ignore new connections to the port, but not those that are being made.

    A listening socket that is closed resets the connections that wait in its queue, with the requests on them. So
    first no more may come, and the queue must be empty. A client that is ignored tries again after a second.
    Only Linux can do this.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor is closed, or no socket
            listener = socket.socket(fileno=os.dup(int(path.name)))
            with listener:
                is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if is_listening and listener.getsockname()[1] == port:
                    listener.setsockopt(
                        socket.SOL_SOCKET,
                        SO_ATTACH_FILTER,
                        struct.pack("HP", len(DROP_SYN), ctypes.addressof(program)),
                    )
