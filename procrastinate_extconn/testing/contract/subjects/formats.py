"""A setting that changes the text of a value, or how a text is read, changes no value in silence."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime, timedelta, timezone
from typing import Any

from procrastinate.exceptions import ConnectorException

from ....hookspecs import Rows
from ..caller import Caller, new_job, what
from ..clause import Broken, clause, must
from ..examples import INSTANTS
from .fidelity import came_back
from .manager import MANY_JOBS, reads_as_natively, seed

_REPEATED = datetime(2031, 10, 26, 0, 15, tzinfo=timezone.utc)
"""In Berlin, 2:15 for the first time that night. It is 2:15 again an hour later."""

_DATE_STYLES = ("ISO, YMD", "German", "SQL, DMY", "SQL, MDY", "Postgres, DMY", "Postgres, MDY")
_MOMENTS = (
    *INSTANTS,
    _REPEATED,
    _REPEATED + timedelta(hours=1),
    datetime(2031, 2, 3, 4, 5, 6, 7, timezone.utc),  # a day that may be a month
)
_ENCODINGS = {"LATIN1": "é ÿ", "SJIS": "ソ表' \\ 日本", "UTF8": "é", "WIN1252": "€ é"}
"""Encodings, and what each has. In Shift JIS, the second byte of some characters is a backslash."""
_LACKING = "é 日本 🦄"
"""Something that most encodings lack."""
_FORMATS = {
    "TimeZone": "Europe/Berlin",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
}


class FormatClauses:
    """DateStyle, client_encoding, and other settings that a session may have."""

    @clause()
    async def test_other_date_style(self, caller: Caller) -> None:
        """With any DateStyle and summer time, an instant comes back as it is, or as a `ConnectorException`."""
        for style in _DATE_STYLES:
            for moment in _MOMENTS:
                await caller.execute("SET TimeZone = 'Europe/Berlin'")
                await caller.execute(f"SET DateStyle = '{style}'")
                attempt = caller.query("SELECT %(at)s::timestamptz AS at", at=moment)
                rows = await _right_or_refused(caller, attempt)
                if rows is not None:
                    came_back(f"with DateStyle {style!r}, an instant", rows[0]["at"], moment)
                elif caller.is_over():
                    return

    @clause()
    async def test_stored_in_any_date_style(self, caller: Caller) -> None:
        """With any DateStyle, a job is stored with its own instant."""
        await caller.execute("SET TimeZone = 'Europe/Berlin'")
        for style in _DATE_STYLES:
            await caller.execute(f"SET DateStyle = '{style}'")
            for moment in _MOMENTS:
                await caller.defer(new_job(scheduled_at=moment))
        await caller.commit()
        stored = [job["scheduled_at"] for job in caller.database.jobs()]
        expected = [moment.astimezone(timezone.utc).replace(tzinfo=None) for moment in _MOMENTS]
        for n, style in enumerate(_DATE_STYLES):
            found = stored[n * len(expected) :][: len(expected)]
            must(
                found == expected,
                f"with DateStyle {style!r}, the instants are stored as {found}, not {expected}",
            )

    @clause()
    async def test_other_client_encoding(self, caller: Caller) -> None:
        """With a client_encoding set by SQL, a text comes back as it is, or the call is a `ConnectorException`."""
        encodings = [(name, text) for name, has in _ENCODINGS.items() for text in (has, _LACKING)]
        query = "SELECT %(text)s::text AS text, length(%(text)s::text) AS length"
        for encoding, text in encodings:
            await caller.execute(f"SET client_encoding = '{encoding}'")
            if await caller.error_of(caller.execute("SELECT 1")):
                return  # the driver itself does not speak it
            rows = await _right_or_refused(caller, caller.query(query, text=text))
            if rows is not None:
                expected = [{"text": text, "length": len(text)}]
                must(rows == expected, f"with {encoding}, {text!r} came back as {rows[0]!r}")
            elif caller.is_over():
                return

    @clause()
    async def test_reads_in_other_formats(self, caller: Caller) -> None:
        """Every query of the manager that reads gives the same rows where the server writes values otherwise."""
        seed(caller.database)
        caller.database.witness.execute(MANY_JOBS)
        for name, setting in _FORMATS.items():
            await caller.execute(f"SET {name} = '{setting}'")
        await reads_as_natively(caller)


async def _right_or_refused(caller: Caller, attempt: Awaitable[Rows]) -> Rows | None:
    """The rows, or None if the call was refused. Then the caller rolls back, and goes on with the connection."""
    error: Any = None
    try:
        return await attempt
    except Exception as exc:  # noqa: BLE001 - a plugin or its driver may raise anything
        error = exc
    if not isinstance(error, ConnectorException):
        raise Broken(f"{what(error)} instead of ConnectorException") from error
    await caller.error_of(caller.rollback())
    if not caller.is_over():
        next_error = await caller.error_of(caller.execute("SELECT 1"))
        must(next_error is None, f"{what(next_error)} by the next statement", next_error)
    return None
