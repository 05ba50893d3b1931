"""Procrastinate's own work, told from an application's calls: a worker's, the command line's, the shell's.

The same query can come from either, so the context decides. A task is an application like any other: its worker hands
it neither the mark nor a `standalone` block.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from . import ambient, replacing
from .sync_async import within

_is_own: ContextVar[bool] = ContextVar("procrastinate_extconn_own_work", default=False)


def is_own_work() -> bool:
    """Whether Procrastinate itself makes this call."""
    return _is_own.get()


def own_work() -> AbstractContextManager[None]:
    """Mark the calls inside as Procrastinate's own."""
    return ambient.setting(_is_own, True)


@contextlib.contextmanager
def _outside_blocks(*, own: bool) -> Generator[None]:
    # A task may leave a block behind, such as that of a generator which it has not finished.
    with ambient.setting(_is_own, own), ambient.cleared():
        yield


_JOBS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "_process_job": functools.partial(_outside_blocks, own=False),
    "_persist_job_status": functools.partial(_outside_blocks, own=True),
}
"""The methods of a worker that run a job: its task and middlewares, and then what becomes of it."""

_ENTRIES = {
    ("worker", "Worker"): {"run": own_work, **_JOBS},
    ("shell", "ProcrastinateShell"): {"onecmd": own_work},
    ("cli", ""): {"execute_command": own_work},
}
"""Where Procrastinate's own work begins and ends, by module, class and function."""


def recognise() -> None:
    """Mark Procrastinate's own work from now on, until `uninstall`."""
    absent = missing()
    for owner, name, block in _entries():
        # A worker must never be hindered. Without both methods it cannot be told from its tasks.
        if not (name in _JOBS and absent & _JOBS.keys()):
            replacing.wrap(owner, name, functools.partial(within, block), __name__)
    builtin = importlib.import_module("procrastinate.builtin_tasks").builtin
    for task in set(builtin.tasks.values()):
        replacing.wrap(task, "func", functools.partial(within, own_work), __name__)


def missing() -> set[str]:
    """The names that this version of Procrastinate lacks."""
    return {name for owner, name, _ in _entries() if not hasattr(owner, name)}


def _entries() -> Iterator[tuple[Any, str, Callable[[], AbstractContextManager[None]]]]:
    for (module, cls), functions in _ENTRIES.items():
        owner = importlib.import_module(f"procrastinate.{module}")
        for name, block in functions.items():
            yield (getattr(owner, cls) if cls else owner), name, block
