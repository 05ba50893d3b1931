"""The contract that a driver plugin keeps, as tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import pytest

from ...kinds import Held, Kind
from .clause import Clause, clauses_of
from .openings import variant
from .parameters import Faulty, parameters
from .subjects.claims import ClaimClauses
from .subjects.discovery import DiscoveryClauses
from .subjects.errors import ErrorClauses
from .subjects.fidelity import FidelityClauses
from .subjects.formats import FormatClauses
from .subjects.interruptions import InterruptionClauses
from .subjects.manager import ManagerClauses
from .subjects.mismatch import MismatchClauses
from .subjects.pools import PoolClauses
from .subjects.session import SessionClauses
from .subjects.states import StateClauses
from .subjects.surroundings import SurroundingsClauses
from .subjects.transactions import TransactionClauses
from .trial import ContractBroken

__all__ = ["ContractBroken", "Held", "Kind", "PluginContract", "clauses", "variant"]


class PluginContract(
    # pytest runs the last one's first.
    PoolClauses,
    InterruptionClauses,
    ManagerClauses,
    MismatchClauses,
    StateClauses,
    ErrorClauses,
    SurroundingsClauses,
    SessionClauses,
    FormatClauses,
    FidelityClauses,
    TransactionClauses,
    ClaimClauses,
    DiscoveryClauses,
):
    """A plugin's test-suite: derive a class whose name begins with ``Test``, and name the plugin or its kinds.

    The tests run on the server in ``EXTCONN_TEST_DSN``, as a user who may create databases, or on a temporary one.
    """

    plugin: ClassVar[str]
    """The plugin's name, as in its entry point. It is needed where `kinds` is left out."""

    kinds: ClassVar[Sequence[Kind]]
    """The kinds of connection that are tested: what the plugin's ``external_kinds`` returns, unless you name others.
    They replace those, so include the plain ones. Each `variant` is a kind of its own."""

    commits_by_itself: ClassVar[Sequence[Kind]] = ()
    """Kinds whose connection commits each statement by itself. Without one, the kit sets ``conn.autocommit = True``
    where that attribute exists."""

    pools: ClassVar[Sequence[Kind]] = ()
    """The pools that ``connect_external`` and ``listen_external`` take: kinds whose `Kind.open` yields the pool itself,
    with room for two connections at least."""

    optional: ClassVar[Collection[str]] = ()
    """Modules that may be missing. A kind that requires one of them is skipped where it is; others fail."""

    exempt: ClassVar[Mapping[str, str]] = {}
    """The clauses that the driver cannot keep, each with the reason. Each is expected to fail: a clause that holds
    after all is reported. The names are those of "The clauses of the contract" in the documentation."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        one = getattr(metafunc.function, "clause", None)
        if not isinstance(one, Clause):
            return
        try:
            found = parameters(type(self), one)
        except Faulty as exc:
            text = f"{type(self).__name__}: {exc}"
        else:
            metafunc.parametrize("kind", found)
            return
        pytest.fail(text, pytrace=False)


def clauses() -> dict[str, str]:
    """Each clause's name and sentence, in the order in which they run."""
    return {name: one.sentence for name, one in clauses_of(PluginContract).items()}
