"""A TCP proxy in front of any server, which can hang, cut connections or refuse them."""

import socket
import threading
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit


class Relay:
    """Passes bytes between clients, on a port of loopback, and a server. A context manager."""

    def __init__(self, url):
        self.url = urlsplit(url)
        self.flows, self.ended = threading.Event(), False
        self.passed = 0
        self.sockets, self.threads = [], []
        self.listener = None

    def __enter__(self):
        self.flows.set()
        self.port = 0
        self.open()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.flows.set()
        self.shut()
        for thread in self.threads:
            thread.join(5)

    @property
    def redis_url(self):
        return self.url._replace(netloc=f":{self.url.password or ''}@127.0.0.1:{self.port}").geturl()

    @property
    def database_url(self):
        user = parse_qs(self.url.query).get("user", [self.url.username])[0]
        return f"postgresql://{user}@127.0.0.1:{self.port}{self.url.path}"

    def connect(self):
        """Connect to the server."""
        query = parse_qs(self.url.query)
        host = unquote(query.get("host", [self.url.hostname])[0])
        if not host.startswith("/"):
            return socket.create_connection((host, self.url.port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{query.get('port', [self.url.port or 5432])[0]}")
        return server

    def open(self):
        """Listen on the same port as before."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.start(self.accept, self.listener)

    def shut(self):
        """Refuse new connections and cut the open ones."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def cut(self):
        """Cut every connection."""
        cut, self.sockets = self.sockets, []
        for one in cut:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def hang(self):
        """Pass nothing on, but keep all connections open."""
        self.flows.clear()

    def flow(self):
        """Pass everything on again."""
        self.flows.set()

    def start(self, work, *arguments):
        self.threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self.threads[-1].start()

    def accept(self, listener):
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = self.connect()
                except OSError:  # no server is there: the next client may be luckier
                    client.close()
                    continue
                self.sockets += [client, server]
                self.start(self.pass_on, client, server, True)
                self.start(self.pass_on, server, client, False)

    def pass_on(self, source, target, counted):
        with suppress(OSError):
            while data := source.recv(65536):
                self.passed += counted
                self.flows.wait()
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()
