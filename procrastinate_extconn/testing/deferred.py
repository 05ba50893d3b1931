"""Look at the jobs inside a transaction that is not committed."""

from __future__ import annotations

import difflib
import json
import pprint
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.tasks import Task

from ..connector import ExternalConnector
from ..plugins import describe
from ..wire import Dumps, Loads

T = TypeVar("T")

_SHOWN = 3
"""How many jobs a failure shows the difference to, the closest first."""


def deferred_jobs(conn: object) -> Any:
    """The jobs that wait to be run, as *conn* sees them: its own before they are committed, and everybody's after.

    :param conn: any connection that a plugin takes.
    :returns: a list of `procrastinate.jobs.Job`, the oldest first; for an async connection an awaitable of that.
    :raises UnsupportedConnection: if no plugin takes *conn*.
    """
    return _waiting(conn, list, None, None)


def assert_deferred(conn: object, task: Task[..., Any, Any] | str, /, **task_kwargs: Any) -> Any:
    """Fail unless a job of *task* with just these arguments waits to be run, as *conn* sees it.

    :param conn: any connection that a plugin takes, in the transaction that deferred the job.
    :param task: the task, or its name.
    :param task_kwargs: the job's arguments.
    :returns: the job, the oldest if there are several; for an async connection an awaitable of that.
    :raises AssertionError: naming the jobs that come closest and how they differ.
    :raises UnsupportedConnection: if no plugin takes *conn*.
    """
    __tracebackhide__ = True
    connector = None if isinstance(task, str) else getattr(task.blueprint, "connector", None)
    dumps = getattr(connector, "_json_dumps", None) or getattr(connector, "json_dumps", None)
    loads = getattr(connector, "_json_loads", None) or getattr(connector, "json_loads", None)
    name = task if isinstance(task, str) else task.name
    # As the worker would get them: a tuple is a list by then.
    expected = (loads or json.loads)((dumps or json.dumps)(task_kwargs))

    def find(waiting: list[Job]) -> Job:
        __tracebackhide__ = True
        for job in waiting:
            if job.task_name == name and job.task_kwargs == expected:
                return job
        raise AssertionError(_report(name, expected, waiting))

    return _waiting(conn, find, dumps, loads)


def _waiting(
    conn: object, then: Callable[[list[Job]], T], dumps: Dumps | None, loads: Loads | None
) -> Any:
    __tracebackhide__ = True
    manager = JobManager(ExternalConnector(conn, json_dumps=dumps, json_loads=loads))
    if not describe(conn).is_async:
        return then(list(manager.list_jobs(status="todo")))

    async def wait() -> T:
        __tracebackhide__ = True
        return then(list(await manager.list_jobs_async(status="todo")))

    return wait()


def _report(name: str, expected: Mapping[str, Any], waiting: list[Job]) -> str:
    others = Counter(job.task_name for job in waiting if job.task_name != name)
    jobs = [job for job in waiting if job.task_name == name]
    if not jobs:
        seen = ", ".join(f"{task} ({count})" for task, count in sorted(others.items())) or "none"
        return f"no job of {name} waits on this connection; the jobs that do: {seen}"
    jobs.sort(key=lambda job: _distance(expected, job.task_kwargs))
    lines = [f"no job of {name} waits with these arguments (- expected, + deferred):"]
    for job in jobs[:_SHOWN]:
        lines += [f"job {job.id}:", *_difference(expected, job.task_kwargs)]
    if len(jobs) > _SHOWN:
        lines.append(f"and {len(jobs) - _SHOWN} more")
    return "\n".join(lines)


def _distance(expected: Mapping[str, Any], found: Mapping[str, Any]) -> int:
    return sum(
        name not in expected or name not in found or expected[name] != found[name]
        for name in {*expected, *found}
    )


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = difflib.ndiff(_lines(expected), _lines(found))
    return [f"  {line}" for line in lines if not line.startswith("?")]


def _lines(task_kwargs: Mapping[str, Any]) -> list[str]:
    """One line for each argument, several for one that is long."""
    return [
        line
        for name, value in sorted(task_kwargs.items())
        for line in f"{name}={pprint.pformat(value)}".splitlines()
    ] or ["(no arguments)"]
