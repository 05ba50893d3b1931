"""The database that the contract is tried on, and a witness that looks at it from outside."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from procrastinate import SyncPsycopgConnector
from procrastinate.schema import SchemaManager
from psycopg import sql

from ..server import database_dsn, server_dsn

if TYPE_CHECKING:
    from typing_extensions import LiteralString

_DATABASE = pytest.StashKey["Database"]()
_CHANNEL = "procrastinate_any_queue_v1"
_SENTINEL = "sentinel"

# A plugin that takes a second connection may wait for the first for ever.
_NO_WAITING = "SET statement_timeout = '20s'"

_TABLES = ("orders", "procrastinate_periodic_defers", "procrastinate_jobs", "procrastinate_workers")

_STORED = """
    SELECT queue_name, task_name, priority, lock, queueing_lock, args::text AS args, status::text AS status,
           scheduled_at AT TIME ZONE 'UTC' AS scheduled_at, attempts, abort_requested, worker_id
    FROM procrastinate_jobs ORDER BY id
"""


class Database:
    """A database with Procrastinate's schema, made for the run.

    :param server: the URI of a server.
    """

    def __init__(self, server: str) -> None:
        self.server: str = server
        self._name = f"extconn_contract_{secrets.token_hex(6)}"
        self.dsn: str = database_dsn(server, self._name)
        self._notified: list[psycopg.Notify] = []
        # If a step fails, nothing stays on the server.
        with ExitStack() as stack:
            self._on_server("CREATE DATABASE {}")
            stack.callback(self._on_server, "DROP DATABASE IF EXISTS {} WITH (FORCE)")
            self._on_server("ALTER DATABASE {} " + _NO_WAITING)
            with psycopg.connect(self.dsn) as conn:
                conn.execute(SchemaManager.get_schema().encode())
                conn.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
            self.witness: psycopg.Connection = psycopg.connect(self.dsn, autocommit=True)
            stack.callback(self.witness.close)
            self.witness.add_notify_handler(self._notified.append)
            self.native: SyncPsycopgConnector = SyncPsycopgConnector(
                conninfo=self.dsn, min_size=1, max_size=1
            )
            """Procrastinate's own connector, which every plugin is compared with."""
            self.native.open()
            stack.callback(self.native.close)
            self.drop: Callable[[], None] = stack.pop_all().close
            """Removes it, and ends the connections that are still open."""

    def _on_server(self, query: LiteralString) -> None:
        with psycopg.connect(self.server, autocommit=True) as conn:
            conn.execute(sql.SQL(query).format(sql.Identifier(self._name)))

    def reset(self) -> None:
        """Empty it, and end what a test before this one may have left open."""
        self.witness.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> ALL(%s)",
            [[self.witness.info.backend_pid, self._native_pid()]],
        )
        self.empty()

    def empty(self) -> None:
        """Empty it."""
        # A TRUNCATE would take ten times as long, and there is one for each test.
        for table in _TABLES:
            self.witness.execute(f"DELETE FROM {table}".encode())  # noqa: S608

    def _native_pid(self) -> int:
        pid: int = self.native.execute_query_one("SELECT pg_backend_pid() AS pid")["pid"]
        return pid

    def sees(self, job_id: int) -> bool:
        """Whether others than the caller see the job."""
        return bool(
            self.value("SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE id = %s)", job_id)
        )

    def value(self, query: str, *args: object) -> Any:
        """The first column of the first row."""
        row = self.witness.execute(query.encode(), args).fetchone()
        return row and row[0]

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that are committed, in plain text as far as drivers differ."""
        cursor = self.witness.execute(_STORED)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def clear_jobs(self) -> None:
        """Forget all jobs."""
        self.witness.execute("DELETE FROM procrastinate_jobs")

    def listen(self) -> None:
        """Hear of new jobs from now on."""
        self.witness.execute(f"LISTEN {_CHANNEL}".encode())
        self.heard()

    def heard(self) -> list[int]:
        """The ids of the jobs that were told of since the last call.

        PostgreSQL hands out notifications in the order of the commits, so what was committed before the sentinel has
        arrived with it.
        """
        self.witness.execute("SELECT pg_notify(%s, %s)", [_CHANNEL, _SENTINEL])
        payloads = [notify.payload for notify in self._notified]
        self._notified.clear()
        return [json.loads(payload)["job_id"] for payload in payloads if payload != _SENTINEL]


def shared_database(config: pytest.Config) -> Database:
    """The database of this run, empty."""
    if _DATABASE not in config.stash:
        database = config.stash[_DATABASE] = Database(server_dsn(config))
        config.add_cleanup(database.drop)
    database = config.stash[_DATABASE]
    database.reset()
    return database
