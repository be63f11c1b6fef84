"""Which surroundings do users have, and how is each started for a test? As child processes, on loopback."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import redis

from tests.servers import CHECKOUT, wait_until
from worker.local import children
from worker.local.postgres import server_account
from worker.local.valkey import free_port

HOSTILE = {
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "'sql_standard'",
    "TimeZone": "'Pacific/Chatham'",
    "array_nulls": "off",
    "bytea_output": "'escape'",
    "backslash_quote": "'on'",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "'serializable'",
    "enable_indexscan": "off",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "'30s'",
    "lock_timeout": "'20s'",
    "plan_cache_mode": "'force_custom_plan'",
    "row_security": "on",
    "standard_conforming_strings": "off",
    "statement_timeout": "'25s'",
    "transform_null_equals": "on",
    "work_mem": "'64kB'",
    "xmloption": "'document'",
}
"""Settings of a database that another application may have wanted."""


class Tls(NamedTuple):
    """Files of a certificate authority, a server and a client."""

    authority: Path
    certificate: Path
    key: Path


PGBOUNCER = Path("/usr/sbin/pgbouncer")


@contextmanager
def pgbouncer(folder: Path, database_url: str) -> Iterator[str]:
    """Give the URL of a database through PgBouncer in transaction mode."""
    url = configure_pgbouncer(folder, database_url)
    with (folder / "log").open("wb") as log:
        process = start_pgbouncer(folder, log)
    try:
        wait_until(lambda: can_connect(url), within_s=10)
        yield url
    finally:
        children.stop(process, (signal.SIGINT,), within_s=5)


def configure_pgbouncer(folder: Path, database_url: str) -> str:
    """Write the configuration of a PgBouncer in front of a database; return the database's URL through it."""
    parts = urlsplit(database_url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    host, name = query.get("host") or parts.hostname, parts.path.lstrip("/")
    backend_port = query.get("port") or parts.port or 5432
    user = query.get("user") or parts.username or "postgres"
    port = free_port()
    folder.mkdir(parents=True)
    (folder / "users.txt").write_text(f'"{user}" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{name} = host={host} port={backend_port} dbname={name} user={user}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nauth_file = {folder}/users.txt\n"
        "unix_socket_dir =\npool_mode = transaction\nmax_client_conn = 200\ndefault_pool_size = 8\n"
        "server_login_retry = 1\n"
    )
    folder.chmod(0o755)
    return f"postgresql://{user}@127.0.0.1:{port}/{name}"


def start_pgbouncer(folder: Path, log: IO[bytes]) -> children.Process:
    """Start the PgBouncer whose configuration is in a folder."""
    command = [str(PGBOUNCER), str(folder / "pgbouncer.ini")]
    return children.start(command, cwd=folder, env={}, output=log, account=server_account())


def can_connect(url: str) -> bool:
    """Tell whether Postgres answers."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def make_certificates(folder: Path) -> Tls:
    """Make a certificate authority, and one certificate for the server and the client."""
    folder.mkdir(parents=True)
    run = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:TRUE"]
    files = Tls(folder / "ca.pem", folder / "ca.pem", folder / "key.pem")
    subprocess.run([*run, *names, "-keyout", files.key, "-out", files.certificate], check=True, capture_output=True)
    return files


@contextmanager
def guarded_redis(folder: Path) -> Iterator[dict[str, str]]:
    """Give the addresses of a Redis with TLS, client certificates, the users of deploy/redis.acl and a Unix socket.

    `worker` and `producer` connect with TLS, `reader` through the socket; all use database 3.
    """
    tls = make_certificates(folder / "tls")
    port, socket = free_port(), folder / "redis.sock"
    folder.chmod(0o755)
    # Comments of our file are not part of Redis's format, and its passwords are placeholders to use as they are.
    users = [line for line in (CHECKOUT / "deploy/redis.acl").read_text().splitlines() if line.startswith("user ")]
    (folder / "users.acl").write_text("\n".join([*users, "user admin on >ADMIN allkeys allchannels +@all"]) + "\n")
    options = {
        "port": "0", "tls-port": str(port), "tls-cert-file": tls.certificate, "tls-key-file": tls.key,
        "tls-ca-cert-file": tls.authority, "tls-auth-clients": "yes", "bind": "127.0.0.1", "unixsocket": socket,
        "unixsocketperm": "777", "aclfile": folder / "users.acl", "dir": folder, "appendonly": "yes",
        "maxmemory-policy": "noeviction",
    }  # fmt: skip
    command = ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    with (folder / "log").open("wb") as log:
        process = children.start(command, cwd=folder, env={"PATH": "/usr/bin:/bin"}, output=log)
    files = f"ssl_ca_certs={quote(str(tls.authority))}&ssl_certfile={quote(str(tls.certificate))}"
    files += f"&ssl_keyfile={quote(str(tls.key))}"

    def by_tls(user: str) -> str:
        return f"rediss://{user}:{user.upper()}_PASSWORD@localhost:{port}/3?{files}"

    try:
        wait_until(socket.exists, within_s=10)
        yield {
            "worker": by_tls("worker"),
            "producer": by_tls("producer"),
            "reader": f"unix://reader:READER_PASSWORD@{socket}?db=3",
            "admin": f"unix://admin:ADMIN@{socket}?db=3",
        }
    finally:
        children.stop(process, (signal.SIGTERM,), within_s=5)


def make_hostile(database_url: str) -> None:
    """Set everything on the database that another application may have wanted."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        [(name,)] = connection.execute("SELECT current_database()").fetchall()
        for setting, value in HOSTILE.items():
            connection.execute(f'ALTER DATABASE "{name}" SET {setting} = {value}')


def is_empty(admin_url: str) -> bool:
    """Tell whether database 0 of a Redis holds nothing: all clients use the database of their address."""
    with redis.Redis.from_url(admin_url.replace("db=3", "db=0")) as client:
        return client.dbsize() == 0
