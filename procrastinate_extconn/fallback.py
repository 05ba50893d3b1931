"""The plugin that is asked last: it says why nobody takes the object, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import NoReturn

from .classes import Classes
from .exceptions import UnsupportedConnection
from .hookspecs import Value, hookimpl
from .known_plugins import missing_plugin

# Objects that lead to a connection, with any driver. Other classes that can be awaited or entered are not listed: they
# may be connections.
_YET_TO_BE = Classes(
    {
        "builtins.str": "A DSN is not a connection: open one with your driver, and pass that.",
        "collections.abc.Coroutine": "Await it, and pass what that gives.",
        "asyncio.Future": "Await it, and pass what that gives.",
        "contextlib._GeneratorContextManager": "Enter it with `with`, and pass what that gives.",
        "contextlib._AsyncGeneratorContextManager": "Enter it with `async with`, and pass what that gives.",
    }
)


def type_name(cls: type) -> str:
    """*cls* as errors name it."""
    return (
        f"{cls.__module__}.{cls.__qualname__}" if cls.__module__ != "builtins" else cls.__qualname__
    )


_HOLDS = ("driver_connection", "raw_connection", "connection", "raw", "conn")
"""The attributes in which wrappers keep the connection that they work on."""


class Fallback:
    """Refuses what no plugin took.

    :param asked: gives the names of the plugins that were asked.
    :param is_taken: whether a plugin takes an object.
    """

    def __init__(
        self,
        asked: Callable[[], list[str]],
        is_taken: Callable[[object], bool] = lambda conn: False,
    ) -> None:
        self._asked = asked
        self._is_taken = is_taken

    @hookimpl(trylast=True)
    def execute_on_external(self, conn: object, query: str, args: Mapping[str, Value]) -> NoReturn:
        raise self.refusal(conn)

    def refusal(self, conn: object) -> UnsupportedConnection:
        asked = self._asked()
        advice = (
            missing_plugin(conn, asked)
            or _YET_TO_BE.find(conn)
            or self._held_connection(conn)
            or 'Pass an open connection, or write a plugin: see "Write a driver plugin" in the documentation.'
        )
        return UnsupportedConnection(
            f"procrastinate-extconn does not support external connections of type {type_name(type(conn))}: "
            f"no plugin takes it (asked: {', '.join(asked)}). {advice}"
        )

    def _held_connection(self, conn: object) -> str | None:
        """What to pass instead of a wrapper, if one of its attributes is a connection that a plugin takes."""
        for name in _HOLDS:
            with contextlib.suppress(
                Exception
            ):  # an attribute may be a property that raises anything
                if self._is_taken(getattr(conn, name)):
                    return f"It holds one that a plugin takes: pass its `.{name}`."
        return None
