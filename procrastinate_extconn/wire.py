"""What goes over the wire: arguments become plain values, and JSON in rows becomes Python again.

One text parameter carries all jobs of a call. It is both the fastest way that was measured and the only one that
every driver takes: a composite array would need type introspection in one driver and 26 regular expressions a job
in another.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, NamedTuple, TypeAlias

from .exceptions import ExternalConnectionError
from .hookspecs import Rows, Value

Dumps: TypeAlias = "Callable[[Any], str | bytes]"
Loads: TypeAlias = "Callable[[str], Any]"

DEFERS = "procrastinate_defer_jobs_"
"""What each query that defers jobs calls. Its rows are the ids of the jobs."""

JSON_COLUMNS = ("args", "stats")
"""The columns that Procrastinate's queries return as JSON."""

_JOBS = re.compile(r"%\((\w+)\)s::(procrastinate_job_to_defer_v\d+)\[\]")
# The table is named so that a database without Procrastinate's schema and one with another version of it give
# different errors: the server looks at FROM first.
_JOBS_AS_TEXT = (
    r"ARRAY(SELECT json_populate_recordset(NULL::\2, CAST(CAST(%(\1)s AS text) AS json)) "
    r"FROM (SELECT CAST('procrastinate_jobs' AS regclass)) AS its_schema)"
)
_CAST = re.compile(r"%\((\w+)\)s::(\w+)(?!\[|\w)")
# A list travels as the text of PostgreSQL's array literal, which every driver can bind.
_ARRAY = re.compile(r"%\((\w+)\)s::(\w+\[\])")
# In `%(nb_hours)s || 'HOUR'` a driver that asks the server for types would want a str for the number.
_CONCATENATED = re.compile(r"%\((\w+)\)s(?=\s*\|\|)")


class Statement(NamedTuple):
    """A query of Procrastinate's as plugins get it."""

    query: str
    jobs: str | None
    """The parameter that takes the job records, if the query defers jobs."""
    numbers: frozenset[str]
    """The parameters that are cast to a number."""
    arrays: frozenset[str]
    """The parameters that are cast to an array."""


@functools.lru_cache(maxsize=256)
def prepare(query: str) -> Statement:
    """*query* with a ``CAST`` for every ``::``, job records as one text, and no parameter of an unclear type."""
    jobs = _JOBS.search(query)
    numbers = frozenset(_CONCATENATED.findall(query))
    query = _JOBS.sub(_JOBS_AS_TEXT, query)
    arrays = frozenset(name for name, _ in _ARRAY.findall(query))
    query = _ARRAY.sub(r"CAST(CAST(%(\1)s AS text) AS \2)", query)
    query = _CAST.sub(r"CAST(%(\1)s AS \2)", query)
    query = _CONCATENATED.sub(r"CAST(%(\1)s AS double precision)", query)
    return Statement(query, jobs[1] if jobs else None, numbers, arrays)


def encode(
    query: str, arguments: Mapping[str, Any], dumps: Dumps | None = None
) -> tuple[str, dict[str, Value]]:
    """A query of Procrastinate's and its arguments, as a plugin gets them.

    :param dumps: makes JSON of a job's arguments; `json.dumps` if None. What it raises comes out as it is.
    :raises ExternalConnectionError: for a list that the query does not cast to an array.
    """
    query, jobs, numbers, arrays = prepare(query)
    args: dict[str, Value] = {}
    for name, value in arguments.items():
        if name == jobs:
            args[name] = encode_jobs(value, dumps)
        elif isinstance(value, dict):
            query = query.replace(f"%({name})s", f"CAST(CAST(%({name})s AS text) AS jsonb)")
            args[name] = _text((dumps or _dumps)(value))
        elif isinstance(value, (list, tuple, set, frozenset)):
            args[name] = _array(name, value, arrays)
        elif name in numbers and value is not None:
            args[name] = float(value)
        else:
            args[name] = value
    return query, args


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


def encode_jobs(jobs: Sequence[Any], dumps: Dumps | None = None) -> str:
    """A JSON array of job records, each an object whose keys are the attributes of the composite type.

    A job's own arguments stand in it as *dumps* wrote them, so that nothing is encoded twice.

    :param jobs: `procrastinate.types.JobToDefer` tuples.
    """
    dumps = dumps or _dumps
    # One function and one join: one job pays for each call, and a large batch for each copy.
    text = ["["]
    for queue_name, task_name, priority, lock, queueing_lock, args, scheduled_at in jobs:
        document = dumps(args)
        record = (
            f'{{"queue_name":{encode_basestring(queue_name)},"task_name":{encode_basestring(task_name)},'
            f'"priority":{priority:d},"args":{document if isinstance(document, str) else document.decode()}'
        )
        if lock is not None:
            record += f',"lock":{_quote(lock)}'
        if queueing_lock is not None:
            record += f',"queueing_lock":{_quote(queueing_lock)}'
        if scheduled_at is not None:
            record += f',"scheduled_at":"{scheduled_at.isoformat()}"'
        text += record, "},"
    text[-1] = "}]" if jobs else "[]"
    return "".join(text)


def _quote(value: object) -> str:
    # Some pass a UUID for a lock, and Procrastinate's own connectors take it.
    return encode_basestring(value if isinstance(value, str) else str(value))


def _make_dumps() -> Callable[[Any], str]:
    """`json.dumps`, which sets up an encoder at each call, with one that is kept."""
    make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)
    if make_encoder is None:  # another Python than CPython
        return json.dumps
    refuse = json.JSONEncoder().default
    # By position: no watch for cycles, no indent, separators, no sorting of keys, none skipped, NaN allowed.
    encode = make_encoder(None, refuse, encode_basestring_ascii, None, ":", ",", False, False, True)

    def dumps(document: Any) -> str:
        try:
            return "".join(encode(document, 0))
        except RecursionError:
            return json.dumps(document)  # says that it is a cycle, if it is one

    return dumps


_dumps = _make_dumps()


def _text(document: str | bytes) -> str:
    return document if isinstance(document, str) else document.decode()


def queueing_locks(arguments: Mapping[str, Any]) -> list[str]:
    """The queueing locks that *arguments* send, of one job or of a batch."""
    jobs = arguments.get("jobs", ())
    locks = [arguments.get("queueing_lock"), *(job.queueing_lock for job in jobs)]
    return [str(lock) for lock in locks if lock is not None]


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
