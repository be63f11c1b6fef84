"""How is RabbitMQ started for a test, if it is installed? As a child process, on loopback, in its own folder."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, NamedTuple

from worker.local import children
from worker.local.valkey import free_port

START_WITHIN_S = 60


class RabbitMQ(NamedTuple):
    """A running server."""

    process: children.Process
    url: str
    environment: dict[str, str]

    def stop(self) -> None:
        """Stop the server and its port mapper, which no other server uses."""
        children.stop(self.process, (signal.SIGTERM,), within_s=30)
        subprocess.run(["epmd", "-kill"], env=self.environment, check=False, capture_output=True)


def start(folder: Path, output: IO[bytes]) -> RabbitMQ:
    """Start RabbitMQ, and wait until it accepts connections."""
    server = shutil.which("rabbitmq-server") or "/usr/sbin/rabbitmq-server"
    server = str(next(Path("/usr/lib/rabbitmq").glob("lib/*/sbin/rabbitmq-server"), server))
    port, mapper_port, distribution_port = free_port(), free_port(), free_port()
    for name in ("home", "mnesia", "log"):
        (folder / name).mkdir(parents=True)
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\nvm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
    )
    (folder / "enabled_plugins").write_text("[].\n")
    environment = {
        "PATH": os.environ["PATH"] + ":/usr/sbin",
        "HOME": str(folder / "home"),
        "LC_ALL": "C.UTF-8",
        "RABBITMQ_NODENAME": f"faults{port}@localhost",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "ERL_EPMD_PORT": str(mapper_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
    }
    process = children.start([server], cwd=folder, env=environment, output=output)
    deadline = time.monotonic() + START_WITHIN_S
    while not is_answering(port):
        assert process.poll() is None, f"RabbitMQ ended with code {process.returncode}"
        assert time.monotonic() < deadline, f"RabbitMQ did not answer within {START_WITHIN_S} s"
        time.sleep(0.2)
    return RabbitMQ(process, f"amqp://guest:guest@127.0.0.1:{port}//", environment)


def is_answering(port: int) -> bool:
    """Tell whether it accepts connections."""
    from kombu import Connection  # noqa: PLC0415 -- only needed with RabbitMQ

    try:
        with Connection(f"amqp://guest:guest@127.0.0.1:{port}//", connect_timeout=2) as connection:
            connection.connect()
    except OSError:
        return False
    return True
