"""The kinds of connection that plugins name: for the demo, the doctor and the contract kit."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import Any

import psycopg
import pytest
from holding import run_python
from installing import Site

from procrastinate_extconn.hookspecs import PROJECT_NAME
from procrastinate_extconn.kinds import Kind, all_kinds, dbapi, kinds_of, run
from procrastinate_extconn.plugins import BUILT_IN

THEIRS = """
    \"\"\"Their driver: `their_driver.Connection`.\"\"\"

    from procrastinate_extconn import Description, hookimpl
    from procrastinate_extconn.drivers import Classes, libpq_state, rows

    _CONNECTION = Classes({"their_driver.Connection": True})

    @hookimpl
    def describe_external(conn):
        if _CONNECTION.find(conn):
            status = conn.raw.info.transaction_status
            return Description("their_driver", "theirs", False, libpq_state(conn.raw, status))

    @hookimpl
    def execute_on_external(conn, query, args):
        if _CONNECTION.find(conn):
            cursor = conn.raw.execute(query, args)
            return rows(cursor.description, cursor.fetchall)

    @hookimpl
    def external_kinds():
        from their_kinds import KINDS
        return KINDS
"""
THEIR_KINDS = """
    import contextlib
    import psycopg
    from procrastinate_extconn.kinds import Held, Kind, dbapi

    @contextlib.contextmanager
    def opened(dsn):
        import their_driver
        with contextlib.closing(psycopg.connect(dsn)) as raw:
            yield dbapi(raw)._replace(conn=their_driver.Connection(raw))

    KINDS = [
        Kind("theirs-open", "theirs", ("their_driver",), False, opened),
        Kind("theirs-lacking", "theirs", ("a_driver_that_is_not_there",), False, opened),
    ]
"""
THEIR_DRIVER = """
    class Connection:
        def __init__(self, raw):
            self.raw = raw
"""


@pytest.fixture
def theirs(site: Site, fresh: None) -> Site:
    """A stranger's plugin is installed, with a kind that can be opened and one that cannot."""
    modules = {"their_kinds": THEIR_KINDS, "their_driver": THEIR_DRIVER}
    site.install("their-plugin", THEIRS, "theirs", **modules)
    return site


def command(*arguments: str) -> str:
    """What a command prints."""
    pytest.importorskip("click")
    pytest.importorskip("rich")
    from click.testing import CliRunner

    from procrastinate_extconn.cli.group import cli

    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_strangers_kinds_are_among_all(theirs: Site, dsn: str) -> None:
    """A plugin that nobody here knows names its kinds, which can be told apart, missed and opened."""
    kind, lacking = kinds_of("theirs")
    assert {kind, lacking} < set(all_kinds())
    assert [kind.missing(), lacking.missing()] == [[], ["a_driver_that_is_not_there"]]

    async def one(held: Any) -> Any:
        return held.execute("SELECT 1")

    assert run(kind, dsn, one) == [(1,)]


@pytest.mark.timeout(300)
def test_the_demo_shows_them(theirs: Site, dsn: str) -> None:
    """The demo commits and rolls back on a stranger's connection, and its short output has a line for the plugin."""
    assert "Their driver" in command("demo", "--dsn", dsn)
    found = json.loads(command("demo", "--dsn", dsn, "--json"))
    [kind] = [one for one in found["kinds"] if one["plugin"] == "theirs"]
    assert (kind["kind"], kind["reason"]) == ("theirs-open", None)
    assert kind["committed_together"]
    assert kind["rolled_back_together"]
    assert kind["run_by_worker"]


def test_the_doctor_tries_them(theirs: Site, dsn: str) -> None:
    """The doctor defers on a stranger's connection too, and counts it."""
    number = len([kind for kind in all_kinds() if not kind.missing()])
    assert "theirs-open" in [kind.id for kind in all_kinds()]
    assert f"{number} of {number} kinds of connection deferred" in command("doctor", "--dsn", dsn)


def test_the_doctor_names_one_that_fails(site: Site, fresh: None, dsn: str) -> None:
    """A stranger's kind that does not open is named by the doctor, with what it raised."""
    pytest.importorskip("click")
    broken = THEIR_KINDS.replace("import their_driver", "raise OSError('no such device')")
    site.install("their-plugin", THEIRS, "theirs", their_kinds=broken, their_driver=THEIR_DRIVER)
    from click.testing import CliRunner

    from procrastinate_extconn.cli.group import cli

    result = CliRunner().invoke(cli, ["doctor", "--dsn", dsn])
    assert result.exit_code == 1
    assert "theirs-open: OSError: no such device" in " ".join(result.output.split())


PLUGINS = [
    *(f"procrastinate_extconn.builtin.{name}" for name in BUILT_IN),
    *sorted(one.module for one in entry_points(group=PROJECT_NAME)),
]


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin_imports_neither_driver_nor_kinds(module: str) -> None:
    """Importing a plugin imports nothing but what plugins are made with, and its kinds only once they are asked for."""
    program = """
        import importlib, sys
        import procrastinate, procrastinate_extconn.plugins
        before = set(sys.modules)
        plugin = importlib.import_module(module)
        loaded = set(sys.modules) - before
        print(*[name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names])
        print(all(kind.plugin for kind in getattr(plugin, "external_kinds", list)()))
    """
    loaded, named = run_python(program, module=module).splitlines()
    others = [name for name in loaded.split() if name != module]
    assert [
        name for name in others if "kinds" in name or not name.startswith("procrastinate_extconn")
    ] == []
    assert named == "True"


def test_kinds_are_unique() -> None:
    """No two kinds have the same name, and each belongs to a plugin that names it."""
    ids = [kind.id for kind in all_kinds()]
    assert len(ids) == len(set(ids))
    assert {kind.plugin for kind in all_kinds()} >= set(BUILT_IN)
    assert all(isinstance(kind, Kind) for kind in all_kinds())


def test_columns_of_one_name_are_all_there(dsn: str) -> None:
    """What a kind's `execute` returns has each column of a row, also where the names are the same."""
    with psycopg.connect(dsn) as conn:
        assert dbapi(conn).execute("SELECT 1, 2") == [(1, 2)]
        conn.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
        assert dbapi(conn).execute("SELECT 1 AS a, 2 AS b") == [(1, 2)]
