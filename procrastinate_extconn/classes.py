"""Find a driver's classes without importing the driver."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Generic, TypeVar

from .exceptions import UnsupportedConnection

T = TypeVar("T")

_CACHED = 512


class Refusal:
    """Marks a class that is mistaken for a connection, with the one line that gets a connection from it.

    :param advice: that line, such as ``async with pool.acquire() as conn: ...``. What was passed has a name in it, such
        as ``pool``. The error shows the line after "Get one from it:".
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice


class Classes(Generic[T]):
    """A driver's classes, by their dotted names, and what a plugin wants to know of each.

    Looked up in `sys.modules` alone: a driver that was never imported has no connections, so saying no costs
    nothing. Subclasses count, and so do proxies that put the wrapped object's class in their ``__class__``.

    :param classes: dotted name -> value; the first match wins. A `Refusal` makes `find` raise.
    """

    def __init__(self, classes: Mapping[str, T | Refusal]) -> None:
        self._classes = classes
        self._found: dict[tuple[type, type], T | None] = {}

    def find(self, conn: object) -> T | None:
        """What stands here for the class of *conn*, or None.

        :raises UnsupportedConnection: where a `Refusal` stands for it.
        """
        key = type(conn), conn.__class__
        try:
            return self._found[key]
        except KeyError:
            return self._search(key)

    def _search(self, key: tuple[type, type]) -> T | None:
        found: T | None = None
        for name, value in self._classes.items():
            module, _, attribute = name.rpartition(".")
            cls = getattr(sys.modules.get(module), attribute, None)
            # issubclass, not isinstance: a metaclass may answer isinstance() by the type, which a proxy's is not.
            if isinstance(cls, type) and any(issubclass(one, cls) for one in key):
                if isinstance(value, Refusal):
                    raise UnsupportedConnection(
                        f"procrastinate-extconn does not support external connections of type {name}: that is not a "
                        f"connection. Get one from it: `{value.advice}`"
                    )
                found = value
                break
        if len(self._found) >= _CACHED:
            self._found.clear()
        self._found[key] = found
        return found
