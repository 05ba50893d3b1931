"""Real servers, real faults, and the table of what came of them.

``EXTCONN_FAULTS=long`` is the long form, ``EXTCONN_SEED`` repeats a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pytest
from faults.chance import LONG, SEED
from faults.ledger import Audit, Ledger
from faults.servers import new_database
from faults.table import table

from procrastinate_extconn.kinds import all_kinds
from procrastinate_extconn.temporary_server import TemporaryServer

T = TypeVar("T")


def pytest_report_header() -> str:
    """Say how long it will take."""
    return f"fault tests: {'long' if LONG else 'short'} form"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long form take its time."""
    for item in items:
        if LONG and item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.timeout(7200))


@pytest.fixture(scope="session")
def server() -> Iterator[TemporaryServer]:
    """A server that a test may kill, with room for many connections."""
    with TemporaryServer(options={"max_connections": "120"}) as server:
        yield server


@pytest.fixture
def own_dsn(server: TemporaryServer) -> Iterator[str]:
    """Address a clean database on that server."""
    with new_database(server) as dsn:
        yield dsn


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance, which can be repeated."""
    print(f"EXTCONN_SEED={SEED}")  # noqa: T201 - shown where the test fails
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def sized() -> Callable[[T, T], T]:
    """Chooses between the short form's and the long form's."""
    return lambda short, long: long if LONG else short


@pytest.fixture
def audit(record_property: Callable[[str, object], None]) -> Callable[[str, Ledger], Audit]:
    """Ends a test: the tables agree, and the figures stand in the table that the run prints."""

    def audit(fault: str, ledger: Ledger) -> Audit:
        found = ledger.audit()
        record_property("audit", (fault, ledger.kind.id, found.figures))
        assert not found.problems, found
        return found

    return audit


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table: faults x kinds of connection."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    if figures := sorted(_recorded(reports), key=_rank):
        terminalreporter.section(f"faults, EXTCONN_SEED={SEED}")
        terminalreporter.write_line(table(figures))


def _recorded(reports: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    for report in reports:
        if report.when == "call":
            yield from (value for name, value in report.user_properties if name == "audit")


def _rank(figures: tuple[Any, ...]) -> int:
    return [kind.id for kind in all_kinds()].index(figures[1])
