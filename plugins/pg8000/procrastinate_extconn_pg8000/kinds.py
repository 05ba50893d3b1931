"""The ways to hold a connection of pg8000."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of, dbapi


@contextmanager
def _pg8000(dsn: str) -> Generator[Held]:
    with closing(import_module("pg8000.dbapi").connect(**address_of(dsn))) as conn:
        yield dbapi(conn)


@contextmanager
def _pg8000_native(dsn: str) -> Generator[Held]:
    with closing(import_module("pg8000.native").Connection(**address_of(dsn))) as conn:

        def execute(sql: str) -> list[tuple[Any, ...]]:
            return list(map(tuple, conn.run(sql) or ()))

        execute("START TRANSACTION")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


KINDS = (
    Kind("pg8000", "pg8000", ("pg8000",), False, _pg8000),
    Kind("pg8000-native", "pg8000", ("pg8000",), False, _pg8000_native),
)
