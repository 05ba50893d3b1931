"""What ``procrastinate-extconn doctor --outbox URL`` finds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from procrastinate_extconn.cli.doctor.findings import Finding

from .names import OUTBOX
from .source import run_sync
from .tables import Tables, UtcNow


def outbox(url: str) -> Iterator[Finding]:
    """Rows that wait in the outbox there, the oldest one's age, and rows that are set aside."""
    try:
        found = run_sync(url, _look)
    # A driver may raise anything, and what it says may hold the password.
    except (SQLAlchemyError, OSError, ImportError) as exc:
        text = f"no answer from its database: {type(exc).__name__}"
        yield Finding("outbox", "problem", text, "see that the URL leads there, and that it runs")
        return
    if found is None:
        yield Finding(
            "outbox",
            "problem",
            f"there is no table {OUTBOX}",
            "create it with what `procrastinate-extconn-outbox tables` prints",
        )
        return
    waiting, age, aside, reason = found
    text = f"{waiting} row{'s' * (waiting != 1)} wait"
    if waiting:
        text += f", the oldest for {timedelta(seconds=int(age.total_seconds()))}"
        yield Finding("outbox", "hint", text, "if they stay, see that a relay runs, and its log")
    else:
        yield Finding("outbox", "ok", text)
    if aside:
        yield Finding(
            "outbox",
            "problem",
            f"{aside} row{'s' * (aside != 1)} set aside, one because: {reason}",
            f"mend its jobs and let it wait again: UPDATE {OUTBOX} SET set_aside = NULL ...; or delete it",  # noqa: S608
        )


def _look(conn: Connection) -> tuple[int, timedelta, int, str | None] | None:
    if not inspect(conn).has_table(OUTBOX):
        return None
    columns = Tables().outbox.c
    waits = columns.set_aside.is_(None)
    wait = select(func.count(), func.min(columns.created_at), UtcNow()).where(waits)
    waiting, oldest, now = _row(conn, wait)
    are_aside = select(func.count(), func.min(columns.set_aside)).where(~waits)
    aside, reason = _row(conn, are_aside)
    return waiting, now - oldest if waiting else timedelta(), aside, reason


def _row(conn: Connection, query: Any) -> Any:
    return conn.execute(query).one()
