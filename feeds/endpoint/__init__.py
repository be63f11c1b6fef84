"""How are feeds served over HTTP? `feeds.endpoint:app` is the ASGI app."""

from feeds.endpoint.asgi import app

__all__ = ["app"]
