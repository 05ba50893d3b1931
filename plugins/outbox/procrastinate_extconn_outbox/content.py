"""What a row of an outbox holds, read without changing a character of it."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any, NamedTuple

from procrastinate.types import JobToDefer

_SPACE = re.compile(r"[ \t\r\n]*")
# The text itself is sent on. Numbers are not to be made of it, as Python has limits of its own.
_decoder = json.JSONDecoder(parse_int=str, parse_float=str)


class UnreadableRow(ValueError):
    """A row that holds no jobs that can be deferred. Its text quotes nothing of them."""


class Job(NamedTuple):
    """One job of a row."""

    text: str
    """It, as it stands in the row."""
    task_name: str
    queueing_lock: str | None


def read_jobs(text: str) -> list[Job]:
    """The jobs in the array *text*.

    :raises UnreadableRow: if it is no array of jobs as this version of Procrastinate has them.
    """
    try:
        return _read(text)
    except (ValueError, IndexError, RecursionError) as exc:
        if isinstance(exc, UnreadableRow):
            raise
    raise UnreadableRow("its jobs are not a JSON array")


def _read(text: str) -> list[Job]:
    at = _after_space(text, 0)
    if text[at] != "[":
        raise UnreadableRow("its jobs are not a JSON array")
    jobs: list[Job] = []
    at = _after_space(text, at + 1)
    while text[at] != "]" or jobs:
        record, end = _decoder.raw_decode(text, at)
        jobs.append(_job(record, text[at:end]))
        at = _after_space(text, end)
        if text[at] == "]":
            break
        if text[at] != ",":
            raise UnreadableRow("its jobs are not a JSON array")
        at = _after_space(text, at + 1)
    if _after_space(text, at + 1) != len(text):
        raise UnreadableRow("something follows the array of its jobs")
    return jobs


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _job(record: Any, text: str) -> Job:
    if not isinstance(record, dict):
        raise UnreadableRow("one of its jobs is not a JSON object")
    fields: tuple[str, ...] = JobToDefer._fields
    if more := [name for name in record if name not in fields]:
        # The server would leave them out in silence. A name that no version could have might be anything.
        shown = ", ".join(name for name in more if re.fullmatch(r"[a-z_]{1,30}", name))
        raise UnreadableRow(
            f"its jobs have fields that the relay's version of Procrastinate does not know ({shown}): upgrade that"
        )
    lock = record.get("queueing_lock")
    if not isinstance(record.get("task_name"), str) or not isinstance(lock, (str, type(None))):
        raise UnreadableRow("one of its jobs has no task_name, or a queueing_lock that is no text")
    return Job(text, record["task_name"], lock)


def require_uuid(row_id: str) -> None:
    """Refuse an id that the inbox could not hold.

    :raises UnreadableRow: if it is no UUID of 36 characters.
    """
    try:
        uuid.UUID(row_id)
    except ValueError:
        pass
    else:
        if len(row_id) == 36:
            return
    raise UnreadableRow("its id is not a UUID of 36 characters")
