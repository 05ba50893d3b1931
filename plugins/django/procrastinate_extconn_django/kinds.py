"""The ways to hold a connection of Django."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of, dbapi

_aliases = itertools.count(1)


@contextmanager
def _django(dsn: str) -> Generator[Held]:
    settings = import_module("django.conf").settings
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        import_module("django").setup()
    django_db = import_module("django.db")
    connections: Any = django_db.connections
    alias = f"held-{next(_aliases)}"
    address = address_of(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address.pop("database"),
        **{name.upper(): value for name, value in address.items()},
    }
    complete = type(connections)({"default": database})
    connections.databases[alias] = complete.databases["default"]
    conn = connections[alias]

    def end(*, rollback: bool) -> None:
        if rollback:
            conn.set_rollback(True)
        atomic.__exit__(None, None, None)

    try:
        atomic = django_db.transaction.atomic(using=alias)
        atomic.__enter__()
        held = dbapi(conn)
        yield held._replace(
            commit=partial(end, rollback=False), rollback=partial(end, rollback=True)
        )
        if conn.in_atomic_block:
            end(rollback=True)
    finally:
        conn.close()
        del connections[alias], connections.databases[alias]


KINDS = (Kind("django", "django", ("django",), False, _django),)
