"""Which database roles do the processes have, and what may each do?"""

from typing import Any

from psycopg import Connection

from feeds.database import begin
from feeds.queries import load_queries
from worker.migrations.runner import lock_schema

SQL = load_queries(__file__)

ROLES = ("usage_feeds_worker", "usage_feeds_reader")


def create_roles(connection: Connection[Any]) -> None:
    """Create the roles of worker and reader, and grant them the rights of this version, in one transaction.

    The schema must be up to date. It is safe to repeat. Raises psycopg's InsufficientPrivilege if the roles do not
    exist and the connection's user may not create them.
    """
    with begin(connection), connection.cursor() as cursor:
        lock_schema(cursor)
        cursor.execute(SQL["create_roles"])
        cursor.execute(SQL["revoke_rights"])
        cursor.execute(SQL["grant_worker_rights"])
        cursor.execute(SQL["grant_reader_rights"])
        cursor.execute(SQL["enable_row_security"])
