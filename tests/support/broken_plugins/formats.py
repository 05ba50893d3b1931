"""Faults under settings of the session that change how values look as text."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from .base import Fault


class ReadsTexts(Fault):
    """Reads instants from the server's text."""

    def read(self, text: str, style: str) -> datetime:
        """Read an instant."""
        if not style.startswith("ISO"):
            raise ValueError(f"cannot read an instant with DateStyle {style}")
        return datetime.fromisoformat(f"{text}:00")

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if not query.endswith(" AS at"):
            return super().execute(raw, query, args)
        rows = super().execute(raw, query.replace(" AS at", "::text AS at"), args)
        return [
            {"at": self.read(row["at"], raw.info.parameter_status("DateStyle"))} for row in rows
        ]


class TakesSummerForUtc(ReadsTexts):
    """Takes an abbreviation that it does not know for UTC."""

    clause = "other_date_style"
    why = "with DateStyle 'German', an instant came back as"

    def read(self, text: str, style: str) -> datetime:
        if not style.startswith("German"):
            return super().read(text, style)
        local, _, zone = text.rpartition(" ")
        known = {"CET": timezone(timedelta(hours=1))}
        return _clock(local, "%d.%m.%Y").replace(tzinfo=known.get(zone, timezone.utc))


class MistakesDaysForMonths(ReadsTexts):
    """Takes the day for the month."""

    clause = "other_date_style"
    why = "with DateStyle 'SQL, DMY', an instant came back as"

    def read(self, text: str, style: str) -> datetime:
        if not style.startswith("SQL"):
            return super().read(text, style)
        local, _, zone = text.rpartition(" ")
        order = "%d/%m" if int(local[:2]) > 12 else "%m/%d"
        berlin = _clock(local, f"{order}/%Y").replace(tzinfo=ZoneInfo("Europe/Berlin"))
        again = berlin.replace(fold=1)
        return again if berlin.tzname() != zone == again.tzname() else berlin


class ForgetsTheSecondHour(Fault):
    """Reads the time of a clock that shows an hour twice."""

    clause = "other_date_style"
    why = "with DateStyle 'ISO, YMD', an instant came back as 2031-10-26 02:15:00+02:00, not"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        return [
            {
                name: value.replace(fold=0) if isinstance(value, datetime) else value
                for name, value in row.items()
            }
            for row in rows
        ]


class LeavesAnswersUnread(Fault):
    """Refuses a DateStyle with the server's answer half read."""

    clause = "other_date_style"
    why = "was raised by the next statement"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if not raw.info.parameter_status("DateStyle").startswith("ISO"):
            raw.pgconn.send_query(b"SELECT 1")
            raise ValueError("cannot read this")
        return super().execute(raw, query, args)


class WritesMonthsFirst(Fault):
    """Writes an instant with the month first, as it is read with most settings."""

    clause = "stored_in_any_date_style"
    why = "with DateStyle 'German', the instants are stored as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        jobs = json.loads(args["jobs"])
        for job in jobs:
            at = datetime.fromisoformat(job["scheduled_at"])
            if at.day <= 12 and not raw.info.parameter_status("DateStyle").startswith("ISO"):
                job["scheduled_at"] = at.strftime("%m/%d/%Y %H:%M:%S.%f%z")
        return super().execute(raw, query, {"jobs": json.dumps(jobs)})


class StaysWithUtf8(Fault):
    """Writes UTF-8 in a session of any encoding."""

    clause = "other_client_encoding"
    why = "with LATIN1, 'é ÿ' came back as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query, {"text": args["text"].encode().decode("latin1")})


class ReplacesWhatIsLacking(Fault):
    """Writes a question mark for a character that the encoding lacks."""

    clause = "other_client_encoding"
    why = "with LATIN1, 'é 日本 🦄' came back as"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        encoding = raw.info.encoding
        text = args["text"].encode(encoding, "replace").decode(encoding)
        return super().execute(raw, query, {"text": text})


class CountsInFloats(Fault):
    """Has the server write each count as a float."""

    clause = "reads_in_other_formats"
    why = "list_queues gives"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs_count" not in query:
            return super().execute(raw, query, args)
        inner = query.rstrip().rstrip(";")
        query = f"SELECT *, jobs_count::float8::text AS counted FROM ({inner}) AS counts"
        rows = super().execute(raw, query, args)
        for row in rows:
            row["jobs_count"] = type(row["jobs_count"])(float(row.pop("counted")))
        return rows


def _clock(text: str, date: str) -> datetime:
    """The time that *text* shows, with a time zone that is to be replaced."""
    text = text if "." in text[-7:] else f"{text}.0"
    return datetime.strptime(f"{text}+0000", f"{date} %H:%M:%S.%f%z")
