"""``external(Outbox(conn), savepoint=True)``: the statements of `procrastinate_extconn.conflicts`, writing the row.

They are PostgreSQL's own, where a failed statement takes the transaction with it. Other databases undo the statement
alone, so there they are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from procrastinate_extconn.hookspecs import Rows, Value
from procrastinate_extconn.wire import DEFERS

from .payload import new_id, stored

LEFT_OUT: Rows = [{"answer": None}]
"""The result that lets the core send the plain statement."""


def belongs(query: str, args: Mapping[str, Value]) -> bool:
    """Whether *query* puts a deferring call into a setting, runs it in a block, or gets the answer."""
    if list(args) == ["call"]:
        return DEFERS in str(args["call"])
    return not args and (query.startswith("DO ") or query.endswith(" AS answer"))


def call(args: Mapping[str, Value], insert: str) -> dict[str, Value]:
    """*args* with a call that inserts the row in place of the one that defers the jobs."""
    if not args:
        return {}
    jobs, count = stored(json.loads(str(args["call"]))["values"][0])
    insert = re.sub(r"%\((id|jobs)\)s", lambda found: f"%{1 + (found[1] == 'jobs')}$L", insert)
    query = (
        f"WITH put AS ({insert}) SELECT -1 AS id FROM put, pg_catalog.generate_series(1, {count})"  # noqa: S608
    )
    return {"call": json.dumps({"query": query, "values": [new_id(), jobs], "has_rows": True})}


def sqlstate(rows: Rows) -> str | None:
    """The SQLSTATE of the error that the block caught, if *rows* are an answer with one."""
    answer = rows[0].get("answer") if rows else None
    if not (isinstance(answer, str) and answer):
        return None
    found: list[Any] = json.loads(answer)
    return found[0] if len(found) > 1 else None
