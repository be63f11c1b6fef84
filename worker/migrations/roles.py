"""Which roles does a database give its processes, and what may each do?"""

from typing import Any

from psycopg import Connection

from feeds.queries import load_queries
from worker.migrations.runner import lock_schema

SQL = load_queries(__file__)

ROLES = ("usage_feeds_worker", "usage_feeds_reader")


def make_roles(connection: Connection[Any]) -> None:
    """Make the roles of worker and reader, with the rights of this version, all or nothing. Safe to repeat.

    The schema is up to date. Raises psycopg's InsufficientPrivilege where the server lacks the roles and its
    user may not create any.
    """
    with connection.transaction(), connection.cursor() as cursor:
        lock_schema(cursor)
        cursor.execute(SQL["make_roles"])
        cursor.execute(SQL["take_rights"])
        cursor.execute(SQL["give_worker_rights"])
        cursor.execute(SQL["give_reader_rights"])
        cursor.execute(SQL["guard_rows"])
