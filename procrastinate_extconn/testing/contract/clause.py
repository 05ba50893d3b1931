"""A clause of the contract: a pytest test that says, when it fails, which clause is broken and why."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from ...kinds import Held, Kind, run
from .caller import Caller
from .database import Database

Body: TypeAlias = "Callable[..., Coroutine[Any, Any, None]]"


class ContractBroken(AssertionError):
    """A plugin does not do what the contract asks."""


def clause(body: Body) -> Callable[..., None]:
    """Make a test of one clause, for sync and async connections alike.

    Its first sentence is the clause. An `AssertionError` in it says why the clause is broken; whatever else comes out
    is the reason itself.

    :param body: an ``async def`` method that takes a `Caller`, and awaits nothing but its methods.
    """
    return _test(body, lambda kind: kind)


def clause_once_closed(body: Body) -> Callable[..., None]:
    """Like `clause`, on a connection whose owner has closed it, or given it back, already."""
    return _test(body, _closed)


def _test(body: Body, prepared: Callable[[Kind], Kind]) -> Callable[..., None]:
    @functools.wraps(body)
    def test(self: Any, kind: Kind, database: Database, *args: Any, **kwargs: Any) -> None:
        async def attempt(held: Held) -> None:
            caller = Caller(kind, held, database, self.cannot_tell)
            # hypothesis passes its values by position or by name, as its version goes.
            await body(self, caller, *args, **kwargs)

        _try(attempt, prepared(kind), database.dsn, body.__doc__)

    # What pytest and hypothesis see: `kind` and `database` in place of the caller.
    del test.__wrapped__
    test.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for name in ("self", "kind", "database", *list(inspect.signature(body).parameters)[2:])
        ]
    )
    return test


def _try(
    attempt: Callable[[Held], Coroutine[Any, Any, None]], kind: Kind, dsn: str, sentence: str | None
) -> None:
    __tracebackhide__ = True
    reasons: list[Exception] = []

    async def main(held: Held) -> None:
        try:
            await attempt(held)
        except Exception as exc:
            reasons.append(exc)
            raise

    try:
        run(kind, dsn, main)
    except Exception as exc:  # noqa: BLE001 - a plugin or its driver may raise anything
        reasons.append(exc)  # closing the connection may have gone wrong too, which matters less
    if reasons:
        raise ContractBroken(_report(sentence, kind, reasons[0])) from reasons[0]


def _report(sentence: str | None, kind: Kind, exc: Exception) -> str:
    why = str(exc) if isinstance(exc, AssertionError) else f"{type(exc).__name__}: {exc}"
    return (
        f"plugin {kind.plugin!r} breaks the contract on {kind.id}\nclause: {sentence}\nwhy: {why}"
    )


def _closed(kind: Kind) -> Kind:
    @contextmanager
    def closed(dsn: str) -> Generator[Held]:
        with kind.open(dsn) as held:
            pass
        yield held

    @asynccontextmanager
    async def closed_async(dsn: str) -> AsyncGenerator[Held]:
        async with kind.open(dsn) as held:
            pass
        yield held

    return kind._replace(open=closed_async if kind.is_async or kind.in_greenlet else closed)
