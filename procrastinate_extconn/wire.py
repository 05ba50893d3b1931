"""What goes over the wire: arguments become plain values, and JSON in rows becomes Python again.

One text parameter carries all jobs of a call. It is both the fastest way that was measured and the only one that
every driver takes: a composite array would need type introspection in one driver and 26 regular expressions a job
in another.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, TypeAlias

from .hookspecs import Rows, Value

Dumps: TypeAlias = "Callable[[Any], str | bytes]"
Loads: TypeAlias = "Callable[[str], Any]"

JSON_COLUMNS = ("args", "stats")
"""The columns that Procrastinate's queries return as JSON."""

_JOBS = re.compile(r"%\((\w+)\)s::(procrastinate_job_to_defer_v\d+)\[\]")
_CAST = re.compile(r"%\((\w+)\)s::(\w+(?:\[\])?)")
_JOBS_AS_TEXT = (
    r"ARRAY(SELECT json_populate_recordset(NULL::\2, CAST(CAST(%(\1)s AS text) AS json)))"
)


def encode(
    query: str, arguments: Mapping[str, Any], dumps: Dumps | None = None
) -> tuple[str, dict[str, Value]]:
    """A query of Procrastinate's and its arguments, as a plugin gets them.

    :param dumps: makes JSON of a job's arguments; `json.dumps` if None. What it raises comes out as it is.
    """
    args: dict[str, Value] = {}
    casts: list[tuple[str, str]] = []
    for name, value in arguments.items():
        kind = type(value)
        if kind is str or value is None or kind is bool:
            args[name] = value
        elif kind is int:
            casts.append((name, "bigint"))
            args[name] = value
        elif kind is float:
            casts.append((name, "double precision"))
            args[name] = value
        elif isinstance(value, Mapping):
            casts.append((name, "jsonb"))
            args[name] = _text((dumps or json.dumps)(value))
        elif name == job_parameter(query):
            args[name] = encode_jobs(value, dumps)
        elif isinstance(value, (list, tuple, set, frozenset)):
            args[name] = list(value)
        else:
            args[name] = value
    return _with_casts(query, tuple(casts)), args


def encode_jobs(jobs: Sequence[Any], dumps: Dumps | None = None) -> str:
    """A JSON array of job records, each an object whose keys are the attributes of the composite type.

    A job's own arguments stand in it as *dumps* wrote them, so that nothing is encoded twice.

    :param jobs: `procrastinate.types.JobToDefer` tuples.
    """
    dumps = dumps or json.dumps
    return "[" + ",".join([_encode_job(job, dumps) for job in jobs]) + "]"


def _encode_job(job: Any, dumps: Dumps) -> str:
    fields: list[str] = []
    for name, value in zip(job._fields, job, strict=True):
        kind = type(value)
        if value is None:
            continue
        if kind is str:
            text = encode_basestring(value)
        elif kind is int:
            text = str(value)
        elif isinstance(value, Mapping):
            text = _text(dumps(value))
        elif isinstance(value, datetime.datetime):
            text = f'"{value.isoformat()}"'
        else:
            # A lock may be a UUID, a priority an IntEnum: Procrastinate's own connectors take them.
            text = json.dumps(value, default=str)
        fields.append(f'"{name}":{text}')
    return "{" + ",".join(fields) + "}"


def _text(document: str | bytes) -> str:
    return document if isinstance(document, str) else document.decode()


@functools.lru_cache(maxsize=256)
def job_parameter(query: str) -> str | None:
    """The name of the parameter that takes the job records, if *query* defers jobs."""
    match = _JOBS.search(query)
    return match[1] if match else None


def queueing_locks(arguments: Mapping[str, Any]) -> list[str]:
    """The queueing locks that *arguments* send, of one job or of a batch."""
    jobs = arguments.get("jobs", ())
    locks = [arguments.get("queueing_lock"), *(job.queueing_lock for job in jobs)]
    return [lock for lock in locks if lock is not None]


@functools.lru_cache(maxsize=256)
def _with_casts(query: str, casts: tuple[tuple[str, str], ...]) -> str:
    query = _JOBS.sub(_JOBS_AS_TEXT, query)
    query = _CAST.sub(r"CAST(%(\1)s AS \2)", query)
    for name, cast in casts:
        placeholder = f"%({name})s"
        if cast == "jsonb":
            query = query.replace(placeholder, f"CAST(CAST({placeholder} AS text) AS jsonb)")
        else:
            # In `%(nb_hours)s || 'HOUR'` a driver that asks the server for types would want a str for the number.
            query = re.sub(
                rf"{re.escape(placeholder)}(?=\s*\|\|)", f"CAST({placeholder} AS {cast})", query
            )
    return query


def decode(rows: Rows, loads: Loads | None = None) -> Rows:
    """*rows* with their JSON columns decoded in place.

    :param loads: reads JSON; `json.loads` if None. Where the driver has decoded a value already, *loads* still
        gets its say.
    """
    if rows:
        for column in JSON_COLUMNS:
            if column in rows[0]:
                for row in rows:
                    row[column] = _decode(row[column], loads)
    return rows


def _decode(value: Any, loads: Loads | None) -> Any:
    if isinstance(value, (str, bytes)):
        return (loads or json.loads)(_text(value))
    if loads is not None and value is not None:
        return loads(json.dumps(value))
    return value
