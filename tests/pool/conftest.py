"""What the tests of a worker on the application's pool share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from pool.working import Jobs
from pools import POOLS, Pool

# aiopg says so, whenever it is collected, of a transaction whose connection was lost or whose task was cancelled.
_AIOPG = (
    "ignore:You have not closed transaction:ResourceWarning",
    "ignore:.*Transaction.__del__:pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave such a warning alone in any test that happens to come later."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in _AIOPG:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(params=POOLS, ids=lambda kind: kind.id)
def pool_kind(request: pytest.FixtureRequest) -> Pool:
    """Every kind of pool."""
    pytest.importorskip(request.param.requires)
    kind: Pool = request.param
    return kind


@pytest.fixture
def size() -> int:
    """How large the pool is."""
    return 4


@pytest.fixture
async def jobs(pool_kind: Pool, dsn: str, size: int) -> AsyncIterator[Jobs]:
    """An app on each kind of pool."""
    async with pool_kind.open(dsn, size) as pool:
        yield Jobs(pool_kind, pool, dsn)


@pytest.fixture
def actions(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The actions of the log records so far."""
    caplog.set_level(logging.INFO)
    return lambda: [str(one.__dict__.get("action")) for one in caplog.records]
