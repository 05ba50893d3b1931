"""Procrastinate as its open proposals would have it. To be called before `procrastinate_extconn` is imported."""

from __future__ import annotations

import inspect
import re
from collections import namedtuple
from typing import Any

from procrastinate import connector, manager, sql, types

SCHEMA = """
ALTER TABLE procrastinate_jobs ADD COLUMN lock_mode text;
CREATE TYPE procrastinate_job_to_defer_v9 AS (
    queue_name text, task_name text, priority integer, lock text, lock_mode text, queueing_lock text,
    args jsonb, scheduled_at timestamptz
);
CREATE FUNCTION procrastinate_defer_jobs_v9(jobs procrastinate_job_to_defer_v9[]) RETURNS bigint[] LANGUAGE sql AS $$
    WITH inserted AS (
        INSERT INTO procrastinate_jobs
            (queue_name, task_name, priority, lock, lock_mode, queueing_lock, args, scheduled_at)
        SELECT queue_name, task_name, priority, lock, lock_mode, queueing_lock, args, scheduled_at
        FROM unnest(jobs) RETURNING id
    ) SELECT array_agg(id) FROM inserted
$$;
"""
"""A schema where a job has one more attribute."""

_FIELDS = list(types.JobToDefer._fields)


def add_field() -> None:
    """Give a job one more field, amid the others (as #1606 gives it one)."""
    names = ["queue_name", "task_name", "priority", "lock", "lock_mode", *_FIELDS[4:]]
    job = namedtuple("JobToDefer", names, defaults=["shared", None, None, None])  # noqa: PYI024
    types.JobToDefer = job  # type: ignore[misc, assignment]
    sql.queries["defer_jobs"] = re.sub(r"_v\d", "_v9", sql.queries["defer_jobs"])


def rename_fields() -> None:
    """Call two fields of a job by other names."""
    fields = namedtuple("JobToDefer", [name.replace("lock", "mutex") for name in _FIELDS])  # noqa: PYI024

    class JobToDefer(fields):  # type: ignore[valid-type, misc]
        """A job, made by the names of old."""

        def __new__(cls, **values: Any) -> Any:
            return super().__new__(cls, *values.values())

    types.JobToDefer = JobToDefer  # type: ignore[misc]


def fold() -> None:
    """Fold ``connection=`` into the methods that run a query (as #1586 does)."""
    source = inspect.getsource(manager)
    source = re.sub(r"_with_connection\(\s*connection,", "(connection=connection,", source)
    assert "_with_connection" not in source
    exec(compile(source, manager.__file__, "exec"), vars(manager))
    for cls in _classes(connector.BaseConnector):
        _fold(cls)
    for cls in _classes(connector.BaseConnector):
        for name in [name for name in vars(cls) if name.endswith("_with_connection")]:
            delattr(cls, name)


def _classes(cls: type) -> list[type]:
    return [cls, *(one for sub in cls.__subclasses__() for one in _classes(sub))]


def _fold(cls: type) -> None:
    for name, method in list(vars(cls).items()):
        if name.startswith("execute_query") and not name.endswith("_with_connection"):
            on_connection = vars(cls).get(f"{name}_with_connection")
            folded = _folded(method, on_connection)
            folded.__module__ = method.__module__
            setattr(cls, name, folded)


def _folded(method: Any, on_connection: Any) -> Any:
    if inspect.iscoroutinefunction(method):

        async def execute_async(
            self: Any, query: Any, *, connection: Any = None, **arguments: Any
        ) -> Any:
            if connection is None:
                return await method(self, query, **arguments)
            return await on_connection(self, connection, query, **arguments)

        return execute_async

    def execute(self: Any, query: Any, *, connection: Any = None, **arguments: Any) -> Any:
        if connection is None:
            return method(self, query, **arguments)
        return on_connection(self, connection, query, **arguments)

    return execute
