"""How does a client leave a Redis that has become a replica?

After a planned failover the old primary lives on as a replica and keeps its connections, and refuses every write.
The address leads to the new primary, but only for a new connection.

Producers run this, so it needs only the core dependencies.
"""

from functools import cache
from typing import Any

from redis.exceptions import ReadOnlyError


class LeavesReplica:
    """A mixin for redis-py's connections: one reconnects before its next use if its server has become a replica."""

    is_replica = False

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one reply."""
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]  # of the connection's own class
        except ReadOnlyError:
            self.is_replica = True
            raise

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Connect if there is no connection, or if it leads to a replica."""
        if self.is_replica:
            self.is_replica = False
            self.disconnect()  # type: ignore[attr-defined]
        return super().connect(*args, **kwargs)  # type: ignore[misc]


@cache
def leaving_replicas(kind: type[Any]) -> type[Any]:
    """Return a class of connections that leaves a server that has become a replica."""
    return type(kind.__name__, (LeavesReplica, kind), {})
