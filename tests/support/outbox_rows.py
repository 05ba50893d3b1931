"""Rows of an outbox, written and read as they are."""

from __future__ import annotations

import json

from procrastinate_extconn_outbox import Tables
from procrastinate_extconn_outbox.payload import new_id
from sqlalchemy import Engine, insert, select

JOB = {"queue_name": "q", "task_name": "ship", "priority": 0, "args": {}}


def write(engine: Engine, *rows: object) -> list[str]:
    """Write rows, each as text or as what is to be JSON, and return their ids."""
    ids = [new_id() for _ in rows]
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    with engine.begin() as conn:
        values = [{"id": row_id, "jobs": text} for row_id, text in zip(ids, texts, strict=True)]
        conn.execute(insert(Tables().outbox), values)
    return ids


def left(engine: Engine) -> dict[str, str | None]:
    """Read why each row that is left was set aside."""
    columns = Tables().outbox.c
    with engine.begin() as conn:
        return {
            row.id: row.set_aside for row in conn.execute(select(columns.id, columns.set_aside))
        }
