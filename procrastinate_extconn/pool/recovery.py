"""What a worker does about an error of its own statement: repeat it, and look first whether it has run."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from procrastinate import sql
from procrastinate.exceptions import ConnectorException

from ..diagnosis import read
from ..exceptions import UnusableConnection
from ..hookspecs import Rows
from ..queries import JOB_ROW

Send: TypeAlias = "Callable[[str, dict[str, Any]], Awaitable[Rows]]"

FETCH = sql.queries["fetch_job"]
ENDS = (sql.queries["finish_job"], sql.queries["retry_job"])
"""The queries that end a run of a job."""

_DOING = (
    f"{FETCH.partition('FROM')[0]}FROM procrastinate_jobs "
    "WHERE status = 'doing' AND worker_id = %(worker_id)s ORDER BY id"
)
_TRANSIENT = re.compile("08|53|57|25006|40001|40P01")
"""The SQLSTATEs, or their classes, of errors that pass: no connection, no resources, a standby, a conflict."""

_CALL = re.compile(r"SELECT (procrastinate_\w+\(.*\))( AS \w+)?;?", re.DOTALL)
_PATIENCE = "FROM set_config('lock_timeout', '250', true) AS patience"


class OwnStatement:
    """One statement of a worker's, which may be sent several times and runs once.

    :param running: the attempts of each job that the worker has fetched and not ended.
    :param in_doubt: whether an earlier one like it may still run.
    """

    def __init__(
        self, query: str, arguments: dict[str, Any], running: Mapping[int, int], *, in_doubt: bool
    ) -> None:
        self.query = query
        self.arguments = arguments
        self.attempts: int | None = (
            running.get(arguments.get("job_id", 0)) if query in ENDS else None
        )
        self.in_doubt: bool = in_doubt
        """Whether it may have run, although no reply has come."""
        self._running = running

    async def run(self, send: Send, text: str) -> Rows:
        """Send *text*, unless the statement has run already."""
        if self.in_doubt and (rows := await self._settle(send)) is not None:
            return rows
        try:
            return await send(text, self.arguments)
        except ConnectorException as exc:
            # A statement that was sent twice may fail because the first was still on its way.
            if self.in_doubt and not is_transient(exc) and not is_blocked(exc):
                rows = await self._settle(send)
                if rows is not None:
                    return rows
            self.in_doubt = True
            raise

    async def _settle(self, send: Send) -> Rows | None:
        """What the statement returned, if it has run."""
        if self.query == FETCH:
            rows = await send(_DOING, {"worker_id": self.arguments["worker_id"]})
            return [row for row in rows if row["id"] not in self._running][:1] or None
        if self.attempts is None:
            return None
        rows = await send(JOB_ROW, {"job_id": self.arguments["job_id"]})
        goes_on = rows and (rows[0]["status"], rows[0]["attempts"]) == ("doing", self.attempts)
        return None if goes_on else []


def patient(query: str) -> str:
    """*query* so that it fails where somebody holds a lock, since the worker's other statements wait behind it."""
    call = _CALL.fullmatch(query.strip())
    if call is None:
        return query
    # Not every driver reads void.
    return (
        f"SELECT {call[1]}{call[2]} {_PATIENCE}"
        if call[2]
        else f"SELECT CAST({call[1]} AS text) {_PATIENCE}"
    )


def is_blocked(error: ConnectorException) -> bool:
    """Whether a `patient` query met a lock."""
    return read(error)[1].sqlstate == "55P03"


def is_transient(error: ConnectorException) -> bool:
    """Whether the same statement may succeed later, maybe on another connection."""
    if isinstance(error, UnusableConnection):
        return True
    cause, sqlstate = error.__cause__, read(error)[1].sqlstate
    if cause is None or sqlstate is not None:
        return _TRANSIENT.match(sqlstate or "") is not None
    return not isinstance(cause, (TypeError, ValueError, LookupError, AttributeError))
