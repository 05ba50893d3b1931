"""Connectors that somebody wrote, where a method would run a query without the connection that is meant.

Only Procrastinate's methods are replaced, and an override reaches them through ``super()``. One that runs the query by
itself is refused before anything is sent: in a `using` block, and where it cannot take the connection.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from procrastinate.connector import BaseConnector
from procrastinate.manager import JobManager
from procrastinate.testing import InMemoryConnector

from . import ambient, replacing
from .exceptions import ExternalConnectionError
from .sync_async import wraps

METHODS = (
    "execute_query",
    "execute_query_one",
    "execute_query_all",
    "execute_query_async",
    "execute_query_one_async",
    "execute_query_all_async",
)
"""The methods of a connector that run a query."""


def is_folded() -> bool:
    """Whether this version of Procrastinate hands a connection to `METHODS`, as their ``connection=``."""
    return _takes_connection(BaseConnector.execute_query_all)


def watch() -> None:
    """Look at the connector of each call that a job manager makes, until `uninstall`."""
    for name, function in list(vars(JobManager).items()):
        if name != "__init__" and _asks_the_connector(function):
            replacing.wrap(JobManager, name, _watched, __name__)


def _asks_the_connector(function: object) -> bool:
    """Whether a method of a job manager does so itself, and not by another method."""
    return (
        inspect.isfunction(function) and "connector" in inspect.unwrap(function).__code__.co_names
    )


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)
    is_async = inspect.iscoroutinefunction(original)

    def method(self: JobManager, *args: Any, **kwargs: Any) -> Any:
        cls: Any = type(self.connector)
        if not _is_known(cls):
            bound = signature.bind(self, *args, **kwargs)
            cls = cls if is_async else type(self.connector.get_sync_connector())
            _check(cls, bound.arguments.get("connection"), is_async=is_async)
        return original(self, *args, **kwargs)

    return wraps(original, method)


@functools.lru_cache(maxsize=256)
def _is_known(cls: Any) -> bool:
    return _is_ours(cls.__module__) or issubclass(cls, InMemoryConnector)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("procrastinate", "procrastinate_extconn")


def _check(cls: Any, connection: object, *, is_async: bool) -> None:
    for name, takes_connection in _on_their_own(cls).items():
        if name.endswith("_async") is not is_async:
            continue
        if connection is None and ambient.in_block():
            raise ExternalConnectionError(
                f"{cls.__qualname__}.{name} runs the query by itself, so it would run outside the transaction of this "
                "using() block: let it call super(), or pass the connection, as in configure(connection=...)"
            )
        if connection is not None and is_folded() and not takes_connection:
            raise ExternalConnectionError(
                f"{cls.__qualname__}.{name} takes no connection, so the query would run outside your transaction: let "
                "it call super(), or give it the parameter connection=None"
            )


@functools.lru_cache(maxsize=256)
def _on_their_own(cls: Any) -> dict[str, bool]:
    """The overrides that never reach Procrastinate's methods, and whether each has a ``connection`` parameter."""
    found: dict[str, bool] = {}
    for name in METHODS:
        override: Any = inspect.unwrap(getattr(cls, name))
        code = getattr(override, "__code__", None)
        if _is_ours(getattr(override, "__module__", "")):
            continue
        # A function inside it may be what uses super(), and another connector may be what it asks.
        if code is None or {"__class__", *METHODS}.isdisjoint(code.co_freevars + code.co_names):
            found[name] = code is not None and _takes_connection(override)
    return found


def _takes_connection(function: Callable[..., Any]) -> bool:
    return "connection" in inspect.signature(function).parameters
