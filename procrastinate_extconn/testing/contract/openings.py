"""Other ways to open a kind of connection: closed already, or two at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

from ...kinds import Held, Kind, done


class Pair(Held):
    """A connection, and in `other` a second one of the same kind."""

    other: Held


def as_it_is(kind: Kind) -> Kind:
    """*kind* itself."""
    return kind


def closed(kind: Kind) -> Kind:
    """*kind* with connections that their owner has closed."""

    @contextmanager
    def opened(dsn: str) -> Generator[Held]:
        with kind.open(dsn) as held:
            pass
        yield held

    @asynccontextmanager
    async def opened_async(dsn: str) -> AsyncGenerator[Held]:
        async with kind.open(dsn) as held:
            pass
        yield held

    return _opening(kind, opened, opened_async)


def twice(kind: Kind) -> Kind:
    """*kind* with two connections at once, in a `Pair`."""

    def pair(one: Held, other: Held) -> Pair:
        found = Pair(*one)
        found.other = other
        return found

    @contextmanager
    def opened(dsn: str) -> Generator[Held]:
        with ExitStack() as stack:
            yield pair(*(stack.enter_context(kind.open(dsn)) for _ in range(2)))

    @asynccontextmanager
    async def opened_async(dsn: str) -> AsyncGenerator[Held]:
        async with AsyncExitStack() as stack:
            held = [await stack.enter_async_context(kind.open(dsn)) for _ in range(2)]
            yield pair(*held)

    return _opening(kind, opened, opened_async)


def variant(kind: Kind, name: str, prepare: Callable[[Any], Awaitable[Any] | Any]) -> Kind:
    """*kind* with connections on which somebody has set what may be in a plugin's way.

    The kit reads numbers and texts through `Held.execute`. They have to stay as the driver gives them by itself.

    :param name: the id becomes that of *kind*, a hyphen, and this.
    :param prepare: called with each connection that was just opened; an ``async def`` where the driver wants that. It
        ends any transaction that it began.
    """

    @contextmanager
    def opened(dsn: str) -> Generator[Held]:
        with kind.open(dsn) as held:
            prepare(held.conn)
            yield held

    @asynccontextmanager
    async def opened_async(dsn: str) -> AsyncGenerator[Held]:
        async with kind.open(dsn) as held:
            await done(prepare(held.conn))
            yield held

    return _opening(kind._replace(id=f"{kind.id}-{name}"), opened, opened_async)


def _opening(kind: Kind, opened: Any, opened_async: Any) -> Kind:
    return kind._replace(open=opened_async if kind.is_async or kind.in_greenlet else opened)
