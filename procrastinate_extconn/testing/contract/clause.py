"""A clause of the contract: a pytest test that says, when it fails, which clause is broken and why."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple, TypeAlias

import pytest

from ...kinds import Kind
from .openings import as_it_is, closed, twice

__all__ = ["Broken", "Clause", "clause", "clauses_of", "must"]

Body: TypeAlias = "Callable[..., Coroutine[Any, Any, None]]"
On: TypeAlias = Literal["kinds", "async", "autocommit", "pools"]


class Clause(NamedTuple):
    """What a test of the kit checks."""

    name: str
    """What `PluginContract.exempt` calls it."""
    sentence: str
    """The clause itself."""
    body: Body
    on: On
    """What it is tried on."""
    prepared: Callable[[Kind], Kind]
    tapped: bool
    """Whether the connection goes through a `Wiretap`."""


class Broken(Exception):
    """The reason why a clause is broken."""


def must(holds: object, why: str, error: BaseException | None = None) -> None:
    """Break the clause unless something *holds*.

    :param why: the reason.
    :param error: what the driver or plugin raised, if that says more.
    """
    if not holds:
        raise Broken(why) from error


def clause(
    *, on: On = "kinds", once_closed: bool = False, on_two: bool = False, tapped: bool = False
) -> Callable[[Body], Callable[..., None]]:
    """Make a test of one clause, for sync and async connections alike.

    The body is an ``async def`` method that takes a `Caller`, or on pools a `Lender`. It awaits nothing but
    methods of that object, unless it is for async connections only. Its docstring's first sentence is the clause.

    :param on: each kind, each async kind, each kind that commits by itself, or each pool.
    :param once_closed: on a connection whose owner has closed it, or given it back, already.
    :param on_two: with a second connection of the kind in `Caller.other`.
    :param tapped: with `Caller.wiretap`.
    """
    prepared = closed if once_closed else twice if on_two else as_it_is

    def made(body: Body) -> Callable[..., None]:
        name = body.__name__.removeprefix("test_")
        sentence = " ".join((inspect.getdoc(body) or "").partition("\n\n")[0].split())
        one = Clause(name, sentence, body, on, prepared, tapped)

        @functools.wraps(body)
        def test(self: Any, kind: Kind, request: pytest.FixtureRequest) -> None:
            from .trial import hold_to

            hold_to(one, self, kind, request)

        # What pytest sees: a plain function of fixtures.
        del test.__wrapped__
        test.clause = one  # type: ignore[attr-defined]
        return test

    return made


def clauses_of(contract: type) -> dict[str, Clause]:
    """The clauses of a contract by name, in the order in which they run."""
    found: dict[str, Clause] = {}
    for cls in reversed(contract.__mro__):
        for test in vars(cls).values():
            one = getattr(test, "clause", None)
            if isinstance(one, Clause):
                found[one.name] = one
    return found
