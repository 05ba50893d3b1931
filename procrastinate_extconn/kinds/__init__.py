"""Every way to hold an open PostgreSQL transaction that this project supports: for the demo, the doctor and the tests.

One function for each way, which opens a connection as its own documentation says.
"""

from __future__ import annotations

from . import drivers, frameworks, psycopg, sqlalchemy
from .kind import Held, Kind, done, run

__all__ = ["KINDS", "Held", "Kind", "done", "kinds_of", "run"]

KINDS: tuple[Kind, ...] = (
    *psycopg.KINDS,
    *sqlalchemy.KINDS,
    *drivers.KINDS,
    *frameworks.KINDS,
)
"""Every way to hold a transaction; `Kind.missing` says which of them this machine can show."""


def kinds_of(plugin: str) -> tuple[Kind, ...]:
    """Every way to hold a connection that *plugin* takes."""
    return tuple(kind for kind in KINDS if kind.plugin == plugin)
