"""What an author meets: how the contract kit is told what to test, and how it says what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from broken_plugins import Right
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import Held, PluginContract
from procrastinate_extconn.testing.contract.caller import Caller
from procrastinate_extconn.testing.contract.clause import Broken, Clause, clauses_of
from procrastinate_extconn.testing.contract.database import Database
from procrastinate_extconn.testing.contract.parameters import Faulty, parameters
from procrastinate_extconn.testing.server import VARIABLE, database_dsn, server_dsn

pytestmark = pytest.mark.programs

PSYCOPG, *_ = kinds_of("psycopg")
BEGINNING = """
import broken_plugins, pytest, time
import procrastinate_extconn as extconn
from contextlib import contextmanager
from broken_plugins import Right
from procrastinate_extconn.testing import Kind, PluginContract
from procrastinate_extconn.testing.contract import trial

extconn.register(Right.plugin, "Right")
"""


@pytest.fixture
def run_kit(pytestconfig: pytest.Config, tmp_path: Path) -> Callable[..., str]:
    """Run a suite of the kit as an author does, and return what pytest prints."""

    def run(suite: str, *options: str, dsn: str | None = None) -> str:
        (tmp_path / "test_mine.py").write_text(BEGINNING + textwrap.dedent(suite))
        environ = {
            VARIABLE: dsn or server_dsn(pytestconfig),
            "PYTHONPATH": str(Path(__file__).with_name("support")),
            "COLUMNS": "200",
        }
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", *options],
            cwd=tmp_path,
            env=os.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        return ran.stdout

    return run


def contract(**attributes: Any) -> type[PluginContract]:
    """A test class of an author's."""
    return type("TestMine", (PluginContract,), attributes)


def given(cls: type[PluginContract], clause: str) -> list[Any]:
    """What the clause is tried on, each with its skip reason."""
    one: Clause = clauses_of(cls)[clause]
    return [
        (one.id, *(mark.kwargs["reason"] for mark in one.marks)) for one in parameters(cls, one)
    ]


MISSPELT = PSYCOPG._replace(id="misspelt", requires=("psycop2",))


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, "set `plugin` to the plugin's name"),
        ({"kinds": PSYCOPG}, "`kinds` should be a tuple of `Kind`"),
        ({"kinds": ("psycopg",)}, "`kinds` should be a tuple of `Kind`"),
        ({"kinds": ()}, "nothing would be tested"),
        ({"plugin": "nobody"}, "no installed plugin names kinds of 'nobody'"),
        ({"kinds": (MISSPELT,)}, "requires psycop2, which is not installed"),
        ({"kinds": (PSYCOPG,), "exempt": {"savepiont": "x"}}, "did you mean 'savepoint'"),
        ({"kinds": (PSYCOPG,), "exempt": {"savepoint": ""}}, "no reason for 'savepoint'"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_nothing_passes_untested(attributes: dict[str, Any], said: str) -> None:
    """A test class that would leave something out in silence is refused, with what to write."""
    with pytest.raises(Faulty, match=re.escape(said)):
        given(contract(**attributes), "is_found")


def test_pools_are_asked_for() -> None:
    """A plugin with `connect_external` is not tested without a pool."""
    with pytest.raises(Faulty, match=r"'psycopg' has connect_external.*name the pools"):
        given(contract(kinds=(PSYCOPG,)), "pool_rolls_back")


def test_kinds_come_from_the_plugin() -> None:
    """Without `kinds`, the kinds are those that the plugin names."""
    found = given(contract(plugin="psycopg", optional=("psycopg_pool",)), "is_found")
    assert [one[0] for one in found] == [kind.id for kind in kinds_of("psycopg")]


def test_a_module_may_be_missing_by_permission() -> None:
    """A kind whose module is missing is skipped, with the reason, where the author says that it may be."""
    cls = contract(kinds=(MISSPELT,), optional=("psycop2",))
    assert given(cls, "is_found") == [("misspelt", "not installed: psycop2")]


@pytest.mark.parametrize(
    ("rows", "what"),
    [(object(), "object"), ([{"id": 1}], "dicts"), (None, "none")],
    ids=["cursor", "dicts", "none"],
)
async def test_an_author_hears_what_execute_should_give(rows: object, what: str) -> None:
    """A `Held.execute` that gives no tuples is told from a plugin that breaks the contract."""
    held = Held(None, lambda query: rows, *[lambda: None] * 2)
    caller = Caller(PSYCOPG, held, cast("Database", None))
    with pytest.raises(
        Broken, match=f"`Held.execute` should return the rows as tuples, .* gave {what}$"
    ):
        await caller.value("SELECT 1")


def test_kind_that_the_kit_cannot_read(run_kit: Callable[..., str]) -> None:
    """A variant whose `Held.execute` reads numbers as texts is told so, once, and no plugin is blamed for it."""
    printed = run_kit(
        """
        from psycopg.types.string import TextLoader
        from procrastinate_extconn.testing import variant

        def as_text(conn):
            conn.raw.adapters.register_loader("int4", TextLoader)

        class TestMine(PluginContract):
            kinds = (variant(Right.kind(), "texts", as_text),)
        """,
        *("-k", "the_very_connection or two_connections"),
    )
    assert (
        "`Held.execute` of Right-texts gives [('1', 'a', True, None)] for `SELECT 1 AS" in printed
    )
    assert "where the kit needs [(1, 'a', True, None)]" in printed
    assert "not tried: the kit cannot read with `Held.execute` of Right-texts" in printed
    assert "breaks the contract" not in printed
    assert "1 failed, 1 skipped" in re.sub(r"\d+ deselected, ", "", printed)


def test_plugin_that_is_not_found(run_kit: Callable[..., str]) -> None:
    """Where there is no such plugin, one failure says so, and the run stops."""
    printed = run_kit("""
        class TestMine(PluginContract):
            kinds = (Right.kind()._replace(plugin="misspelt"),)
        """)
    assert "there is no plugin 'misspelt' with execute_on_external, only Right" in printed
    assert "1 failed" in printed
    assert "passed" not in printed
    assert len(printed.splitlines()) < 25


def install(folder: Path, name: str, source: str) -> None:
    """Put a distribution with one plugin, whose module has the plugin's name, into a folder."""
    (folder / f"{name}.py").write_text(source)
    dist_info = folder / f"{name}-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text(f"[procrastinate_extconn]\n{name} = {name}\n")


IS_ASYNC = """
from procrastinate_extconn import hookimpl

@hookimpl
async def execute_on_external(conn, query, args):
    return None
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        (IS_ASYNC, "is an async def, which would claim every connection"),
    ],
    ids=["import", "async-def"],
)
def test_plugin_that_cannot_be_loaded(
    run_kit: Callable[..., str], tmp_path: Path, source: str, reason: str
) -> None:
    """A plugin that is left out is reported with the reason, once."""
    install(tmp_path, "broken", source)
    printed = run_kit("""
        class TestMine(PluginContract):
            kinds = (Right.kind()._replace(plugin="broken"),)
        """)
    assert "the plugin 'broken' could not be loaded: " in printed
    assert reason in printed
    assert "1 failed" in printed


def test_plugin_that_imports_its_driver(run_kit: Callable[..., str], tmp_path: Path) -> None:
    """A plugin that imports its driver when it is loaded is caught."""
    source = """
        import sqlite3
        from broken_plugins import Right
        describe_external = Right.plugin.describe_external
        execute_on_external = Right.plugin.execute_on_external
        """
    install(tmp_path, "eager", textwrap.dedent(source))
    printed = run_kit(
        """
        class TestMine(PluginContract):
            kinds = (Right.kind()._replace(plugin="eager", requires=("sqlite3",)),)
        """,
        *("-k", "imports_no_driver"),
    )
    assert "why: loading eager imports sqlite3" in printed


OPENS = """
    @contextmanager
    def failing(dsn):
        raise OSError(f"no route to {dsn}")
        yield

    @contextmanager
    def hanging(dsn):
        time.sleep(60)
        yield

    @contextmanager
    def closing(dsn):
        with Right.kind().open(dsn) as held:
            yield held
        raise OSError("cannot close")

    def kind(open):
        return Kind(open.__name__, "Right", (), False, open)

    trial.TIME_LIMIT = 3

    class TestMine(PluginContract):
        kinds = tuple(map(kind, (failing, hanging, closing)))
    """


def test_open_is_the_authors(run_kit: Callable[..., str]) -> None:
    """An `open` that fails, hangs or cannot close is reported as that, once, and without a secret."""
    printed = run_kit(OPENS, "-k", "is_found or savepoint")
    assert (
        "the test's own `open` of failing failed, before the plugin was asked\nOSError: no route to <DSN>"
        in printed
    )
    assert "in failing: raise OSError" in printed
    assert "the test's own `open` of hanging failed" in printed
    assert "it takes more than 3 seconds" in printed
    assert "in hanging: time.sleep(60)" in printed
    assert "not tried: `open` of failing failed before, in is_found" in printed
    assert "the connection cannot be closed after this clause: OSError: cannot close" in printed
    assert "6 failed" not in printed
    password = conninfo_to_dict(os.environ.get(VARIABLE, "")).get("password")
    assert "postgresql://" not in printed
    assert not password or str(password) not in printed


def test_exemptions(run_kit: Callable[..., str]) -> None:
    """A clause that is exempt is expected to fail, and reported once it holds."""
    printed = run_kit(
        """
        class TestNeeded(PluginContract):
            kinds = (broken_plugins.states.Blind.kind(),)
            exempt = {"description": "nobody knows the state"}

        class TestNotNeeded(PluginContract):
            kinds = (Right.kind(),)
            exempt = {"description": "nobody knows the state"}

        extconn.register(broken_plugins.states.Blind.plugin, "Blind")
        """,
        *("-k", "test_description and not free and not contract"),
    )
    assert "XFAIL" in printed
    assert "nobody knows the state (it has no describe_external)" in printed
    assert "the exemption from description is no longer needed on Right" in printed
    assert "1 failed, 1 xfailed" in re.sub(r"\d+ deselected, ", "", printed)


def test_a_failure_is_short(run_kit: Callable[..., str]) -> None:
    """A broken clause is told in a few lines with the driver's own error, and the same reason again in one."""
    printed = run_kit(
        """
        class Fails(broken_plugins.Fault):
            def execute(self, raw, query, args):
                raw.execute("SELECT nothing")

        extconn.register(Fails.plugin, "Fails")

        class TestMine(PluginContract):
            kinds = (Fails.kind(),)
        """,
        *("-k", "commit_keeps or rollback_takes"),
    )
    told = printed.partition("breaks the contract on Fails")[2]
    assert "clause commit_keeps_row_and_job: A commit by the caller" in told
    assert "why: procrastinate.exceptions.ConnectorException: psycopg: column" in told
    assert "from psycopg.errors.UndefinedColumn: column" in told
    assert 'in execute: raw.execute("SELECT nothing")' in told
    assert "why: as in commit_keeps_row_and_job: " in told
    assert "Traceback" not in printed
    assert len(printed.splitlines()) < 40


def test_without_asserts(run_kit: Callable[..., str]) -> None:
    """With ``python -O``, where Python leaves asserts out, a broken plugin fails all the same."""
    printed = run_kit(
        """
        extconn.register(broken_plugins.transactions.Commits.plugin, "Commits")

        class TestMine(PluginContract):
            kinds = (broken_plugins.transactions.Commits.kind(),)
        """,
        *("-k", "invisible_before_commit", "-W", "ignore"),
    )
    assert "1 failed" in printed


def databases(server: str) -> set[str]:
    """The names of the databases on the server."""
    with psycopg.connect(server) as conn:
        return {name for (name,) in conn.execute("SELECT datname FROM pg_database")}


def test_any_dsn(run_kit: Callable[..., str], pytestconfig: pytest.Config) -> None:
    """The server may be given in any form that psycopg takes, and no database stays there."""
    server = server_dsn(pytestconfig)
    parts = {**conninfo_to_dict(server), "connect_timeout": "20", "application_name": "it's mine"}
    before = databases(server)
    printed = run_kit(
        """
        class TestMine(PluginContract):
            kinds = (Right.kind(),)
        """,
        *("-k", "is_found or savepoint or one_statement"),
        dsn=make_conninfo("", **parts),
    )
    assert "4 passed" in printed
    assert {one for one in databases(server) - before if "contract" in one} == set()


def test_a_server_that_is_not_there(run_kit: Callable[..., str]) -> None:
    """A server that cannot be used is told from a broken plugin, without its password."""
    printed = run_kit(
        """
        class TestMine(PluginContract):
            kinds = (Right.kind(),)
        """,
        *("-k", "is_found"),
        dsn="postgresql://me:s3cret@127.0.0.1:1/x?connect_timeout=2",
    )
    assert "the kit cannot use its PostgreSQL server: OperationalError" in printed
    assert "s3cret" not in printed


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("host=/run/pg port=5433 user=me dbname=x", "postgresql://me:@/y?host=/run/pg&port=5433"),
        ("host=::1 user=me password='a b/c@d'", "postgresql://me:a%20b%2Fc%40d@[::1]/y"),
        (
            "postgresql://me@db.example:6/x?sslmode=require",
            "postgresql://me:@db.example:6/y?sslmode=require",
        ),
    ],
)
def test_database_dsn(server: str, expected: str) -> None:
    """Another database's address on the same server is a URI, also if the server's was not."""
    assert database_dsn(server, "y") == expected
    assert conninfo_to_dict(expected)["dbname"] == "y"


def test_registered_at_run_time(run_kit: Callable[..., str]) -> None:
    """A plugin without an entry point is tested, but for what loading it imports."""
    printed = run_kit(
        """
        class TestMine(PluginContract):
            kinds = (Right.kind(),)
        """,
        *("-k", "is_found or imports_no_driver or leaves_others"),
    )
    assert "2 passed, 1 skipped" in re.sub(r"\d+ deselected, ", "", printed)
    assert "the plugin was registered at run time" in printed


def test_kinds_yield_what_is_held() -> None:
    """An `open` that yields a bare connection hears what it should yield."""
    with pytest.raises(Broken, match="`open` should yield a `Held`: it yielded"):
        Caller(Right.kind(), cast("Held", object()), cast("Database", None))
