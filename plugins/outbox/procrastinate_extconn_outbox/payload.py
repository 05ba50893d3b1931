"""The jobs of one call as one JSON text, as the core sends them and as the outbox keeps them."""

from __future__ import annotations

import json
import re
import secrets
import time
import uuid

from procrastinate_extconn.exceptions import ExternalConnectionError

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# A backslash that is not escaped itself, and what PostgreSQL's JSON cannot store after it.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def new_id() -> str:
    """A UUID of version 7: those of one machine sort in the order in which they were made."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    value = milliseconds << 80 | 7 << 76 | (rest * 4096 // 1_000_000) << 64
    return str(uuid.UUID(int=value | 2 << 62 | secrets.randbits(62)))


def stored(jobs: str) -> tuple[str, int]:
    """The array of jobs as the outbox keeps it, and how many there are.

    It is in ASCII, so that no character set of a table, a connection or a dump can change it.

    :param jobs: the array as the core sends it.
    :raises ExternalConnectionError: for what PostgreSQL could not store, while there is somebody to hear of it.
    """
    if not jobs.isascii():
        jobs = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], jobs)
    try:
        read = json.loads(jobs, parse_constant=_refuse)
        if "\\ud" in jobs.lower():  # Only a whole pair of surrogates can be encoded.
            json.dumps(read, ensure_ascii=False).encode()
        count = len(read)
    except ValueError:
        count = 0
    if not count or _NUL.search(jobs):
        raise ExternalConnectionError(
            "the job's arguments are not JSON that PostgreSQL can store: NaN, Infinity, a NUL character and half a "
            "surrogate pair are not"
        )
    return jobs, count


def _refuse(constant: str) -> None:
    raise ValueError(constant)
