"""The contract kit passes what keeps the contract, and says of the rest which clause is broken and why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import broken_plugins
import psycopg
import pytest
from holding import ALL_DRIVERS

from procrastinate_extconn.builtin.sqlalchemy_kinds import url
from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import Held, Kind, PluginContract, variant
from procrastinate_extconn.testing.contract.caller import Caller
from procrastinate_extconn.testing.contract.database import Database
from procrastinate_extconn.testing.server import VARIABLE, server_dsn

PSYCOPG, *_ = kinds_of("psycopg")
OPTIONAL = (
    ()
    if ALL_DRIVERS in os.environ
    else ("sqlalchemy", "sqlmodel", "greenlet", "asyncpg", "psycopg2", "pg8000")
)


def set_factories(conn: psycopg.Connection[Any]) -> None:
    """Set factories that change what a cursor takes and gives."""
    conn.cursor_factory = psycopg.ClientCursor
    conn.row_factory = psycopg.rows.dict_row


@contextmanager
def engine(dsn: str) -> Generator[Any]:
    """Make an engine of SQLAlchemy's."""
    from sqlalchemy import create_engine

    engine = create_engine(url(dsn, "psycopg"), pool_size=3, max_overflow=0)
    yield engine
    engine.dispose()


@asynccontextmanager
async def async_engine(dsn: str, driver: str) -> AsyncGenerator[Any]:
    """Make an async engine of SQLAlchemy's."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url(dsn, driver), pool_size=3, max_overflow=0)
    yield engine
    await engine.dispose()


@contextmanager
def pool(dsn: str) -> Generator[Any]:
    """Open a pool of psycopg's."""
    from psycopg_pool import ConnectionPool

    with ConnectionPool(dsn, min_size=1, max_size=3, open=True) as pool:
        yield pool


@asynccontextmanager
async def async_pool(dsn: str) -> AsyncGenerator[Any]:
    """Open an async pool of psycopg's."""
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(dsn, min_size=1, max_size=3, open=False) as pool:
        yield pool


def _engine(driver: str, *, is_async: bool) -> Kind:
    opened = partial(async_engine, driver=driver) if is_async else engine
    name = f"{'async-' if is_async else ''}engine-{driver}"
    return Kind(name, "sqlalchemy", ("sqlalchemy", driver), is_async, opened)


class TestPsycopg(PluginContract):
    """The built-in plugin for psycopg keeps the contract."""

    kinds = (*kinds_of("psycopg"), variant(PSYCOPG, "factories", set_factories))
    pools = (
        Kind("psycopg-pool-itself", "psycopg", ("psycopg_pool",), False, pool),
        Kind("psycopg-async-pool-itself", "psycopg", ("psycopg_pool",), True, async_pool),
    )
    optional = () if ALL_DRIVERS in os.environ else ("psycopg_pool",)


class TestSQLAlchemy(PluginContract):
    """The built-in plugin for SQLAlchemy keeps it."""

    kinds = tuple(kind for kind in kinds_of("sqlalchemy") if "asyncpg" not in kind.requires)
    pools = (_engine("psycopg", is_async=False), _engine("psycopg", is_async=True))
    optional = OPTIONAL


class TestSQLAlchemyOnAsyncpg(PluginContract):
    """So it does on asyncpg, which does not show that a transaction has failed."""

    kinds = tuple(kind for kind in kinds_of("sqlalchemy") if "asyncpg" in kind.requires)
    pools = (_engine("asyncpg", is_async=True),)
    optional = OPTIONAL
    exempt = {"state_after_an_error": "asyncpg does not show that a transaction has failed"}


@pytest.mark.parametrize(
    ("given", "what"),
    [(object(), "object"), ([{"id": 1}], "dicts"), (None, "none")],
    ids=["cursor", "dicts", "none"],
)
async def test_an_author_hears_what_execute_should_give(given: object, what: str) -> None:
    """A `Held.execute` that gives no tuples is told from a plugin that breaks the contract."""
    held = Held(None, lambda query: given, *[lambda: None] * 2)
    caller = Caller(PSYCOPG, held, cast("Database", None), ())
    with pytest.raises(
        AssertionError, match=f"`Held.execute` should return the rows as tuples, .* gave {what}$"
    ):
        await caller.value("SELECT 1")


@pytest.mark.parametrize("given", [{}, {"kinds": PSYCOPG}], ids=["none", "no-tuple"])
def test_an_author_hears_what_kinds_should_be(given: dict[str, Any]) -> None:
    """A test class without kinds, or with a kind that is not in a tuple, says what it lacks."""
    contract: Any = type("TestMine", (PluginContract,), given)()
    with pytest.raises(pytest.UsageError, match="kinds should be a tuple"):
        contract.pytest_generate_tests(SimpleNamespace(fixturenames=["kind"]))


CLAUSES = [name for name in dir(broken_plugins.TestBroken) if name.startswith("test_")]
CAUGHT = [
    ("Commits", "test_invisible_before_commit", "another connection saw the job before the commit"),
    ("Commits", "test_rollback_takes_row_and_job", "the plugin committed it"),
    ("Commits", "test_notify_at_commit", "a notification went out before the commit"),
    (
        "RollsBack",
        "test_rollback_is_the_callers",
        "the plugin rolled the caller's transaction back",
    ),
    ("Closes", "test_the_very_connection", "is closed"),
    ("Swallows", "test_error_comes_out", "nothing was raised instead of ConnectorException"),
    ("Swallows", "test_taken_lock", "instead of AlreadyEnqueued"),
    ("RunsElsewhere", "test_the_very_connection", "the query ran on another connection"),
    ("RunsElsewhere", "test_rollback_takes_row_and_job", "deferred on another connection"),
    ("JsonAsText", "test_jobs_are_stored_as_sent", "args is stored as"),
    ("JsonAsText", "test_worker_runs_it", "the worker ran []"),
    ("LosesDigits", "test_jobs_are_stored_as_sent", "args is stored as"),
    ("Reorders", "test_batch_order", "the jobs behind the ids are"),
    ("ForgetsZones", "test_reads", "list_jobs gives"),
    ("NoRowsIsNone", "test_rows_are_dicts", "UnsupportedConnection"),
    ("Meddles", "test_settings_stay", "the plugin changed DateStyle"),
    ("IsAsync", "test_is_found", "is an async def, which would claim every connection"),
    (
        "LeavesUnawaited",
        "test_nothing_unawaited",
        "coroutine 'LeavesUnawaited.log' was never awaited",
    ),
    ("ClaimsAll", "test_leaves_others_alone", "execute_on_external takes <"),
    ("Lies", "test_state_after_an_error", "the state is 'in_transaction'"),
    ("Lies", "test_closed", "the connection takes no statement"),
    ("Asks", "test_description_is_free", "it sent a statement to the server"),
    ("Blind", "test_description", "it has no describe_external"),
]
"""Plugin, a test that it fails, and why."""


@pytest.fixture(scope="module")
def failures(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Run the kit on broken plugins that were installed: the tests that failed, and what they said."""
    folder = tmp_path_factory.mktemp("broken")
    dist_info = folder / "broken_plugins-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: broken-plugins\nVersion: 1.0\n"
    )
    lines = [
        f"{one.__name__} = broken_plugins:{one.__name__}.plugin" for one in broken_plugins.PLUGINS
    ]
    (dist_info / "entry_points.txt").write_text("\n".join(["[procrastinate_extconn]", *lines]))
    (folder / "test_broken.py").write_text("from broken_plugins import TestBroken\n")
    tests = [f"{clause}[Right]" for clause in CLAUSES] + [
        f"{clause}[{name}]" for name, clause, _ in CAUGHT
    ]
    search = os.pathsep.join([str(folder), str(Path(__file__).with_name("support"))])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml"]
        + [f"test_broken.py::TestBroken::{test}" for test in tests],
        cwd=folder,
        env=os.environ | {VARIABLE: server_dsn(pytestconfig), "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    cases = list(ElementTree.parse(folder / "report.xml").iter("testcase"))
    assert sorted(case.attrib["name"] for case in cases) == sorted(tests), ran.stdout
    return {case.attrib["name"]: str(text.text) for case in cases for text in case.iter("failure")}


def test_what_is_right_passes(failures: dict[str, str]) -> None:
    """A plugin that keeps the contract passes every clause in the same run."""
    assert [test for test in failures if test.endswith("[Right]")] == []


@pytest.mark.parametrize(("plugin", "test", "why"), CAUGHT)
def test_what_is_broken_is_caught(
    plugin: str, test: str, why: str, failures: dict[str, str]
) -> None:
    """A plugin that breaks a clause fails that clause's test, which says which plugin, which clause and why."""
    text = failures[f"{test}[{plugin}]"]
    assert f"plugin '{plugin}' breaks the contract on {plugin}" in text
    assert f"clause: {getattr(broken_plugins.TestBroken, test).__doc__}" in text
    assert why in text.partition("why: ")[2]
