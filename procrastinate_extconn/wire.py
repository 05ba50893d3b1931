"""What goes over the wire: arguments become plain values, and JSON in rows becomes Python again.

One text parameter carries all jobs of a call. That is the fastest way that was measured, and the only one that every
driver takes. A composite array would need type introspection in one driver, and 26 regular expressions a job in
another.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from json.encoder import encode_basestring
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from .builtin.native import as_text
from .exceptions import ExternalConnectionError
from .hookspecs import Rows, Value
from .queries import JOBS, JOBS_AS_TEXT

Dumps: TypeAlias = "Callable[[Any], str | bytes]"
Loads: TypeAlias = "Callable[[str], Any]"

DEFERS = "procrastinate_defer_jobs_"
"""What each query that defers jobs calls. Its rows are the ids of the jobs."""

# `json.dumps` sets up more at each call. A cycle ends in a RecursionError.
_dumps: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

JSON_COLUMNS = ("args", "stats")
"""The columns that Procrastinate's queries return as JSON."""

_CAST = re.compile(r"%\((\w+)\)s::(\w+)(?!\[|\w)")
# A list travels as the text of PostgreSQL's array literal, which every driver can bind.
_ARRAY = re.compile(r"%\((\w+)\)s::(\w+\[\])")
# In `%(nb_hours)s || 'HOUR'` a driver that asks the server for types would want a str for the number. The server's own
# text of a float depends on extra_float_digits.
_CONCATENATED = re.compile(r"%\((\w+)\)s(?=\s*\|\|)")
# As text, a job's arguments keep the digits that a driver's own reading of JSON would round.
_ARGS = re.compile(r"((?:\A|\))\s*SELECT\b(?:(?:(?!\bFROM\b)[^()])*,)?\s*)args(?=\s*,|\s+FROM\b)")


class Statement(NamedTuple):
    """A query of Procrastinate's as plugins get it."""

    query: str
    jobs: str | None
    """The parameter that takes the job records, if the query defers jobs."""
    concatenated: frozenset[str]
    """The parameters that become part of a text."""
    arrays: frozenset[str]
    """The parameters that are cast to an array."""


@functools.lru_cache(maxsize=256)
def prepare(query: str) -> Statement:
    """*query* with a ``CAST`` for every ``::``, job records as one text, and no parameter of an unclear type."""
    jobs = JOBS.search(query)
    concatenated = frozenset(_CONCATENATED.findall(query))
    query = JOBS.sub(JOBS_AS_TEXT, query)
    arrays = frozenset(name for name, _ in _ARRAY.findall(query))
    query = _ARRAY.sub(r"CAST(CAST(%(\1)s AS pg_catalog.text) AS \2)", query)
    query = _CAST.sub(r"CAST(%(\1)s AS \2)", query)
    query = _ARGS.sub(r"\1CAST(args AS pg_catalog.text) AS args", query)
    query = _CONCATENATED.sub(r"CAST(%(\1)s AS pg_catalog.text)", query)
    return Statement(query, jobs[1] if jobs else None, concatenated, arrays)


def encode(
    query: str, arguments: Mapping[str, Any], dumps: Dumps | None = None
) -> tuple[str, dict[str, Value]]:
    """A query of Procrastinate's and its arguments, as a plugin gets them.

    :param dumps: makes JSON of a job's arguments; `json.dumps` if None. What it raises comes out as it is.
    :raises ExternalConnectionError: for a list that the query does not cast to an array, or a text with a NUL.
    """
    query, jobs, concatenated, arrays = prepare(query)
    args: dict[str, Value] = {}
    for name, value in arguments.items():
        if name == jobs:
            args[name] = encode_jobs(value, dumps)
            job_type: Any = type(value[0]) if value else None
            if value and (more := layout(job_type).more):
                query = with_attributes(query, more)
        elif isinstance(value, dict):
            query = query.replace(
                f"%({name})s", f"CAST(CAST(%({name})s AS pg_catalog.text) AS pg_catalog.jsonb)"
            )
            args[name] = _text((dumps or _dumps)(value))
        elif isinstance(value, (list, tuple, set, frozenset)):
            args[name] = _without_nul(name, _array(name, value, arrays))
        elif name in concatenated and value is not None:
            args[name] = _without_nul(name, str(value))
        else:
            args[name] = _without_nul(name, value) if isinstance(value, str) else value
    return query, args


def _without_nul(name: str, text: str) -> str:
    if "\0" in text:  # Some drivers would cut the text there.
        raise ExternalConnectionError(
            f"the parameter {name!r} has a NUL character, which PostgreSQL cannot store: remove it"
        )
    return text


def _array(name: str, values: Iterable[Any], arrays: frozenset[str]) -> str:
    """*values* as PostgreSQL's array literal."""
    if name not in arrays:
        raise ExternalConnectionError(
            f"the parameter {name!r} is a list, and the query does not say of what: write %({name})s::bigint[], or "
            "text[], or the type that it is"
        )
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    if isinstance(value, (list, tuple, Mapping)):
        raise ExternalConnectionError(
            "a list in a list, or a dict in a list, is no parameter that can be sent"
        )
    return "NULL" if value is None else '"' + re.sub(r'(["\\])', r"\\\1", str(value)) + '"'


_FIELDS = ("queue_name", "task_name", "priority", "lock", "queueing_lock", "args", "scheduled_at")
"""The attributes of a job that are known here."""


class _Layout(NamedTuple):
    """Where a version of Procrastinate keeps what it knows of a job that is to be deferred."""

    ordered: Callable[[Any], tuple[Any, ...]] | None
    """Takes the values of `_FIELDS` from a job, and then those of `more`; None where it has that order anyway."""
    more: tuple[str, ...]
    """The names of the attributes that are not known here."""


@functools.lru_cache(maxsize=16)
def layout(job: Any) -> _Layout:
    """How to read a job by names: in another version it may have other fields, or another order.

    :param job: its class.
    :raises ExternalConnectionError: if it cannot be read.
    """
    fields: tuple[str, ...] = getattr(job, "_fields", ())
    if missing := [name for name in _FIELDS if name not in fields]:
        raise ExternalConnectionError(
            f"this version of Procrastinate has jobs without {', '.join(missing)} ({job.__qualname__} has "
            f"{', '.join(fields) or 'no fields'}): use one that procrastinate-extconn is tested with"
        )
    more = tuple(name for name in fields if name not in _FIELDS)
    ordered = itemgetter(*map(fields.index, _FIELDS + more)) if fields != _FIELDS else None
    return _Layout(ordered, more)


def with_attributes(query: str, names: tuple[str, ...]) -> str:
    """*query*, failing where a job record lacks one of the attributes: from JSON, it would be dropped in silence."""
    record = re.findall(r"NULL::(\w+)", query)[0]
    there = " AND ".join(f"(CAST(NULL AS {record})).{name} IS NULL" for name in names)
    return query.replace("AS its_schema", f"AS its_schema WHERE {there}")


def encode_jobs(jobs: Sequence[Any], dumps: Dumps | None = None) -> str:
    """A JSON array of job records, each an object whose keys are the attributes of the composite type.

    A job's own arguments stand in it as *dumps* wrote them, so that nothing is encoded twice.

    :param jobs: `procrastinate.types.JobToDefer` tuples.
    """
    if not jobs:
        return "[]"
    dumps = dumps or _dumps
    job_type: Any = type(jobs[0])
    ordered, more = layout(job_type)
    # One function and one join: one job pays for each call, and a large batch for each copy.
    text = ["["]
    for queue_name, task_name, priority, lock, queueing_lock, args, scheduled_at, *others in (
        map(ordered, jobs) if ordered else jobs
    ):
        document = dumps(args)
        record = (
            f'{{"queue_name":{_quote(queue_name)},"task_name":{encode_basestring(task_name)},'
            f'"priority":{priority:d},"args":{document if isinstance(document, str) else document.decode()}'
        )
        if lock is not None:
            record += f',"lock":{_quote(lock)}'
        if queueing_lock is not None:
            record += f',"queueing_lock":{_quote(queueing_lock)}'
        if scheduled_at is not None:
            record += f',"scheduled_at":"{scheduled_at.isoformat()}"'
        if others:
            for name, value in zip(more, others, strict=True):
                record += f',"{name}":{_json(value, dumps)}'
        text += record, "},"
    text[-1] = "}]"
    return "".join(text)


def encode_rows(rows: Sequence[dict[str, Any]], dumps: Dumps | None = None) -> str:
    """A JSON array of job records that hold nothing but the arguments of a job each."""
    if dumps is None:
        return _dumps([{"args": row} for row in rows])
    return f"[{','.join([_record(dumps(row)) for row in rows])}]"


def _record(document: str | bytes) -> str:
    return f'{{"args":{_text(document)}}}'


def _json(value: Any, dumps: Dumps) -> str:
    """A value of a field that is not known here, as PostgreSQL reads it from a JSON record."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (dict, list)):
        return _text(dumps(value))
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return encode_basestring(value.isoformat() if isinstance(value, datetime) else str(value))


def _quote(value: object) -> str:
    return encode_basestring(value if type(value) is str else lock_text(value))


def lock_text(value: object) -> str:
    """A lock or a queue as Procrastinate's own connectors write it, so that both mean the same one.

    :raises ExternalConnectionError: for what they do not write, or only as PostgreSQL's text of bytes.
    """
    if type(value) is str:
        return value
    text = as_text(value)
    if text is None:
        raise ExternalConnectionError(
            f"a lock or a queue should be a str, got {type(value).__name__}, which cannot be written as text"
        )
    return text


def _text(document: str | bytes) -> str:
    return document if isinstance(document, str) else document.decode()


def queueing_locks(arguments: Mapping[str, Any]) -> list[str]:
    """The queueing locks that *arguments* send, of one job or of a batch."""
    jobs = arguments.get("jobs", ())
    if isinstance(jobs, str):
        return [job["queueing_lock"] for job in json.loads(jobs) if "queueing_lock" in job]
    locks = [arguments.get("queueing_lock"), *(job.queueing_lock for job in jobs)]
    return [lock_text(lock) for lock in locks if lock is not None]


def decode(rows: Rows, loads: Loads | None = None) -> Rows:
    """*rows* with their JSON columns decoded in place.

    :param loads: reads JSON; `json.loads` if None. A value that the driver has decoded is encoded again for *loads*.
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
