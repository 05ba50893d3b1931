"""Procrastinate's log records of deferred jobs, made only if somebody reads them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import FunctionType
from typing import Any

from procrastinate.jobs import JobDeferrer

from . import replacing
from .layer import layer

_METHODS = ("_log_before_defer_jobs", "_log_after_defer_jobs")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def watch() -> None:
    """Wrap the methods that turn each job into a dict before they ask whether their logger is enabled."""
    for name in _METHODS:
        if level := _level(vars(JobDeferrer).get(name)):
            replacing.wrap(JobDeferrer, name, functools.partial(_lazy, level=level), __name__)


def _level(method: object) -> int | None:
    """The level at which *method* logs; None if it is not the method that we know, which does nothing else."""
    if not isinstance(method, FunctionType):
        return None
    code = method.__code__
    # Before Python 3.12, what a list comprehension uses is not among the names.
    names = set(code.co_names) - {"log_context"}
    called = names - {"len", "logger"}
    parameters = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if parameters != ("self", "jobs") or len(called) != 1 or "logger" not in names:
        return None
    return _LEVELS.get(called.pop())


def _lazy(method: FunctionType, level: int) -> Callable[..., None]:
    @functools.wraps(method)
    def log(self: JobDeferrer, jobs: Any) -> None:
        logger: logging.Logger = method.__globals__["logger"]
        if logger.isEnabledFor(level) or not layer.is_on(self.job_manager.connector):
            method(self, jobs)

    return log
