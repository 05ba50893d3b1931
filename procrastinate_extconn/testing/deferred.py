"""Look at the jobs inside a transaction that is not committed."""

from __future__ import annotations

import difflib
import json
import pprint
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from procrastinate.connector import BaseConnector
from procrastinate.jobs import Job
from procrastinate.manager import JobManager
from procrastinate.tasks import Task

from .open_transaction import TestedConnection

AnyTask = Task[..., Any, Any]
T = TypeVar("T")

_SHOWN = 3
"""How many jobs a failure shows the difference to, the closest first."""


def deferred_jobs(conn: object) -> Any:
    """The jobs that wait to be run, as *conn* sees them: its own before they are committed, and everybody's after.

    :param conn: any connection that a plugin takes.
    :returns: a list of `procrastinate.jobs.Job`, the oldest first; for an async connection an awaitable of that.
    :raises UnsupportedConnection: if no plugin takes *conn*.
    """
    return _waiting(TestedConnection(conn), list)


def assert_deferred(conn: object, task: AnyTask | str, /, **task_kwargs: Any) -> Any:
    """Fail unless a job of *task* with just these arguments waits to be run, as *conn* sees it.

    :param conn: any connection that a plugin takes, in the transaction that deferred the job.
    :param task: the task, or its name.
    :param task_kwargs: the job's arguments.
    :returns: the job, the oldest if there are several; for an async connection an awaitable of that.
    :raises AssertionError: naming the jobs that come closest and how they differ.
    :raises UnsupportedConnection: if no plugin takes *conn*.
    """
    __tracebackhide__ = True
    tested = TestedConnection(conn, _connector(task))
    expected = _as_stored(task_kwargs, tested)

    def find(waiting: list[Job]) -> Job:
        __tracebackhide__ = True
        for job in waiting:
            if job.task_name == _name(task) and job.task_kwargs == expected:
                return job
        raise AssertionError(_report(_name(task), expected, waiting))

    return _waiting(tested, find)


def assert_not_deferred(conn: object, task: AnyTask | str, /, **task_kwargs: Any) -> Any:
    """Fail if a job of *task* waits to be run, as *conn* sees it.

    :param conn: any connection that a plugin takes.
    :param task: the task, or its name.
    :param task_kwargs: with arguments, only a job with just these counts; without any, each job of *task* does.
    :returns: None; for an async connection an awaitable of that.
    :raises AssertionError: with the jobs that wait.
    :raises UnsupportedConnection: if no plugin takes *conn*.
    """
    __tracebackhide__ = True
    tested = TestedConnection(conn, _connector(task))
    unwanted = _as_stored(task_kwargs, tested)

    def check(waiting: list[Job]) -> None:
        __tracebackhide__ = True
        jobs = [job for job in waiting if job.task_name == _name(task)]
        if unwanted:
            jobs = [job for job in jobs if job.task_kwargs == unwanted]
        if jobs:
            raise AssertionError(_unwanted(_name(task), jobs))

    return _waiting(tested, check)


def _connector(task: AnyTask | str) -> BaseConnector | None:
    return None if isinstance(task, str) else getattr(task.blueprint, "connector", None)


def _name(task: AnyTask | str) -> str:
    return task if isinstance(task, str) else task.name


def _as_stored(task_kwargs: dict[str, Any], tested: TestedConnection) -> Any:
    """*task_kwargs* as the worker would get them: a tuple is a list by then."""
    dumps, loads = tested.json_dumps or json.dumps, tested.json_loads or json.loads
    return loads(dumps(task_kwargs))  # type: ignore[arg-type]


def _waiting(tested: TestedConnection, then: Callable[[list[Job]], T]) -> Any:
    __tracebackhide__ = True

    async def wait() -> T:
        __tracebackhide__ = True
        return then(list(await JobManager(tested).list_jobs_async(status="todo")))

    return tested.answer(wait())


def _unwanted(name: str, jobs: list[Job]) -> str:
    lines = [f"jobs of {name} wait, which should not ({len(jobs)}):"]
    for job in jobs[:_SHOWN]:
        lines += [f"job {job.id}:", *(f"    {line}" for line in _lines(job.task_kwargs))]
    return _shortened(lines, len(jobs))


def _shortened(lines: list[str], count: int) -> str:
    return "\n".join([*lines, f"and {count - _SHOWN} more"] if count > _SHOWN else lines)


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
    return _shortened(lines, len(jobs))


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
