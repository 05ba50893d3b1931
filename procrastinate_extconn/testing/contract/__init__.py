"""The contract that a driver plugin keeps, as tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar

import pytest

from ...kinds import Held, Kind, done
from .clause import ContractBroken
from .colours import ColourClauses
from .database import Database, shared_database
from .discovery import DiscoveryClauses
from .errors import ErrorClauses
from .fidelity import FidelityClauses
from .manager import ManagerClauses
from .states import StateClauses
from .transactions import TransactionClauses

__all__ = ["ContractBroken", "PluginContract", "variant"]


class PluginContract(
    # pytest runs the last one's first.
    ManagerClauses,
    ColourClauses,
    StateClauses,
    ErrorClauses,
    FidelityClauses,
    TransactionClauses,
    DiscoveryClauses,
):
    """A plugin's test-suite: derive a class whose name begins with ``Test``, and say how to open a connection.

    The tests run on the server in ``EXTCONN_TEST_DSN``, as a user who may create databases, or on a temporary one.
    """

    kinds: ClassVar[Sequence[Kind]]
    """The kinds of connection that the plugin takes; variants with unusual settings are kinds of their own."""

    cannot_tell: ClassVar[Collection[str]] = ()
    """What the driver has no way to show: states that `Description.state` may have, and the ``"sqlstate"`` of an
    error."""

    @pytest.fixture
    def database(self, request: pytest.FixtureRequest) -> Database:
        return shared_database(request.config)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            kinds = getattr(self, "kinds", None)
            if kinds is None or isinstance(kinds, Kind):
                raise pytest.UsageError(f"{type(self).__name__}.kinds should be a tuple of `Kind`")
            metafunc.parametrize("kind", [_parameter(kind) for kind in kinds])


def _parameter(kind: Kind) -> object:
    missing = kind.missing()
    reason = f"not installed: {', '.join(missing)}"
    return pytest.param(
        kind, id=kind.id, marks=[pytest.mark.skip(reason=reason)] if missing else []
    )


def variant(kind: Kind, name: str, prepare: Callable[[Any], Any]) -> Kind:
    """*kind* with connections on which somebody has set what may be in a plugin's way.

    :param name: what is added to the kind's own.
    :param prepare: sets it on a connection; an ``async def`` where the driver wants that.
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

    return kind._replace(id=f"{kind.id}-{name}", open=opened_async if kind.is_async else opened)
