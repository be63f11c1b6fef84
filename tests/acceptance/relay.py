"""A way to a server that can be hung, cut and shut, whatever the server speaks."""

import socket
import threading
from contextlib import suppress
from urllib.parse import parse_qs, unquote, urlsplit


class Relay:
    """Passes bytes between clients, at a port of loopback, and a server. A context manager."""

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

    def reach(self):
        """Connect to the server itself."""
        query = parse_qs(self.url.query)
        host = unquote(query.get("host", [self.url.hostname])[0])
        if not host.startswith("/"):
            return socket.create_connection((host, self.url.port))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{query.get('port', [self.url.port or 5432])[0]}")
        return far

    def open(self):
        """Listen, at the same port as before."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.start(self.accept, self.listener)

    def shut(self):
        """Refuse new connections, and cut those there are."""
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
        """Pass nothing on, nor say so."""
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
                near, _ = listener.accept()
                far = self.reach()
                self.sockets += [near, far]
                self.start(self.pass_on, near, far, True)
                self.start(self.pass_on, far, near, False)

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
