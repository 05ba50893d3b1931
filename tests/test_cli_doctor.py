"""``procrastinate-extconn doctor``: the right diagnosis, a fix for each problem, and the right exit status."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from procrastinate.schema import SchemaManager
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from procrastinate_extconn.kinds import all_kinds
from procrastinate_extconn.temporary_server import TemporaryServer

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from procrastinate_extconn.cli.group import cli

INSTALLED = [kind for kind in all_kinds() if not kind.missing()]


def run(*args: str) -> Result:
    """Run the doctor in this process."""
    return CliRunner().invoke(cli, ["doctor", *args])


def examine(dsn: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the doctor's exit status, and what it found by what it looked at."""
    result = run("--dsn", dsn, "--json")
    found = json.loads(result.stdout[result.stdout.index("{") :])
    assert found["healthy"] is (result.exit_code == 0)
    for finding in found["findings"]:
        assert finding["fix"] or finding["status"] not in ("problem", "hint")
    return result.exit_code, {finding["check"]: finding for finding in found["findings"]}


def sql(dsn: str, *statements: str) -> None:
    """Run statements, each committed, in which {} is the name of the database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(SQL(statement).format(Identifier(conn.info.dbname)))  # type: ignore[arg-type]


def test_healthy(dsn: str) -> None:
    """Where all is well, the exit status is 0: each driver has deferred, and no job is left."""
    result = run("--dsn", dsn)
    assert result.exit_code == 0, result.output
    assert "All is well." in result.output
    assert "methods *_with_connection" in result.output
    assert "complete, in public" in result.output
    number = len(INSTALLED)
    assert f"{number} of {number} kinds of connection deferred a job" in result.output
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchall() == [(0,)]
        assert conn.execute("SELECT nextval('procrastinate_jobs_id_seq')").fetchall() == [
            (number + 1,)
        ]


def test_environment(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --dsn, the doctor goes where libpq's environment variables lead."""
    names = {"dbname": "DATABASE"}
    for name, value in conninfo_to_dict(dsn).items():
        monkeypatch.setenv(f"PG{names.get(name, name).upper()}", str(value))
    result = run()
    assert result.exit_code == 0, result.output


def test_down() -> None:
    """A server that is down is the one problem, and the password does not show."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        dsn = f"postgresql://someone:geheim@127.0.0.1:{port}/shop"
        status, found = examine(dsn)
        assert status == 1
        assert found["server"]["status"] == "problem"
        assert f"no connection to shop on 127.0.0.1:{port} as someone" in found["server"]["text"]
        assert "PGHOST" in found["server"]["fix"]
        assert "schema" not in found
        result = run("--dsn", dsn)
    assert "\n1 problem.\n" in result.output
    assert "geheim" not in result.output


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://someone:gehe@im@localhost/shop",
        "postgresql://someone:gehe/im@localhost/shop",
        "password=gehe im host=localhost",
        "nonsense gehe im",
    ],
)
def test_dsn_that_cannot_be_read(dsn: str) -> None:
    """A DSN that libpq would misunderstand is not tried, nor quoted; the exit status is 2."""
    result = run("--dsn", dsn)
    assert result.exit_code == 2
    assert "it cannot be read: it should look like postgresql://" in result.output
    assert "gehe" not in result.output
    assert "im@" not in result.output


class TestSchema:
    """What is wrong with Procrastinate's schema."""

    def test_missing(self, databases: Any) -> None:
        """A database without it."""
        with databases.create("template0") as name:
            status, found = examine(databases.dsn(name))
        assert status == 1
        assert found["schema"]["text"] == "Procrastinate's is not in this database"
        assert "schema --apply" in found["schema"]["fix"]
        assert found["drivers"]["status"] == "skipped"

    def test_elsewhere(self, dsn: str) -> None:
        """It is there, but not on the search_path."""
        sql(dsn, "CREATE SCHEMA app", "ALTER DATABASE {} SET search_path = app")
        status, found = examine(dsn)
        assert status == 1
        assert found["search_path"]["text"] == "app"
        assert "is in public, which is not on the search_path" in found["schema"]["text"]
        assert "public" in found["schema"]["fix"]

    def test_on_the_search_path(self, databases: Any) -> None:
        """It is in a schema of its own, and that is on the search_path."""
        with databases.create("template0") as name:
            dsn = databases.dsn(name)
            sql(dsn, "CREATE SCHEMA app", "ALTER DATABASE {} SET search_path = app")
            with psycopg.connect(dsn) as conn:
                conn.execute(SchemaManager.get_schema())
            status, found = examine(dsn)
        assert status == 0
        assert found["schema"]["text"] == "complete, in app"

    def test_older(self, dsn: str) -> None:
        """It is older than this Procrastinate: what is missing is named, and the migration that brings it."""
        sql(dsn, "DROP FUNCTION procrastinate_defer_jobs_v1")
        status, found = examine(dsn)
        assert status == 1
        assert "it lacks procrastinate_defer_jobs_v1" in found["schema"]["text"]
        assert "from 03.02.00_01_pre_batch_defer_jobs.sql on" in found["schema"]["fix"]

    def test_newer(self, dsn: str) -> None:
        """It is newer than this Procrastinate."""
        rename = "ALTER FUNCTION procrastinate_defer_jobs_v1 RENAME TO procrastinate_defer_jobs_v9"
        sql(dsn, rename)
        status, found = examine(dsn)
        assert status == 1
        assert "upgrade Procrastinate" in found["schema"]["fix"]
        assert "procrastinate_defer_jobs_v9" in found["schema"]["fix"]

    def test_search_path_leads_nowhere(self, dsn: str) -> None:
        """No schema of the search_path exists."""
        sql(dsn, "ALTER DATABASE {} SET search_path = nowhere")
        status, found = examine(dsn)
        assert status == 1
        assert found["search_path"]["status"] == "problem"


def test_read_only(dsn: str) -> None:
    """Transactions are read-only by a setting of the database."""
    sql(dsn, "ALTER DATABASE {} SET default_transaction_read_only = on")
    status, found = examine(dsn)
    assert status == 1
    assert found["access"]["text"] == (
        "transactions are read-only: default_transaction_read_only is on, by database"
    )


def test_rolls_back_nothing_it_does_not_own(dsn: str) -> None:
    """A trigger that refuses jobs is told with its SQLSTATE, once for all drivers, and without its own text."""
    sql(
        dsn,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no jobs today'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON procrastinate_jobs FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    result = run("--dsn", dsn)
    assert result.exit_code == 1
    assert f"0 of {len(INSTALLED)} kinds of connection" in result.output
    assert "every kind of connection: " in result.output
    assert "(SQLSTATE P0001)" in result.output


@pytest.fixture(scope="module")
def server() -> Iterator[TemporaryServer]:
    """Start a server that a test may do anything with."""
    with TemporaryServer() as server:
        with psycopg.connect(server.dsn()) as conn:
            conn.execute(SchemaManager.get_schema())
        yield server


def test_standby(server: TemporaryServer) -> None:
    """A standby takes no writes."""
    with TemporaryServer(standby_of=server) as standby:
        status, found = examine(standby.dsn())
    assert status == 1
    assert found["access"]["text"] == "the server is a standby, which takes no writes"


def test_password(server: TemporaryServer) -> None:
    """A password that is wrong, or not given at all, is what is wrong, and does not show."""
    result = run("--dsn", make_conninfo(server.dsn(), password="geheim"))
    assert result.exit_code == 1
    assert "-> check user, password and database" in result.output
    assert "geheim" not in result.output
    status, found = examine(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")
    assert status == 1
    assert "give a password" in found["server"]["fix"]


def test_no_such_database(server: TemporaryServer) -> None:
    """Where the database does not exist, that is what is wrong, and not the password, which was right."""
    status, found = examine(make_conninfo(server.dsn(), dbname="shop"))
    assert status == 1
    assert "name the database" in found["server"]["fix"]
    assert "PGPASSWORD" not in found["server"]["fix"]


def test_privileges(server: TemporaryServer) -> None:
    """A role that lacks privileges is told which, once for all drivers, and with the grants it defers."""
    sql(server.dsn(), "CREATE ROLE clerk LOGIN PASSWORD 'clerks own'")
    dsn = make_conninfo(server.dsn(), user="clerk", password="clerks own")
    sql(server.dsn(), "GRANT SELECT ON procrastinate_jobs TO clerk")
    result = run("--dsn", dsn)
    assert result.exit_code == 1
    assert "SQLSTATE 42501" in result.output
    assert "\n1 problem.\n" in result.output
    assert "clerks own" not in result.output
    [advice] = [line.partition("-> ")[2] for line in result.output.splitlines() if "GRANT" in line]
    assert "GRANT INSERT ON procrastinate_jobs TO clerk" in advice
    assert "SELECT ON" not in advice
    sql(server.dsn(), *advice.split("; "))
    assert run("--dsn", dsn).exit_code == 0


def test_sqlalchemys_url(dsn: str) -> None:
    """A URL as SQLAlchemy takes it is understood."""
    result = run("--dsn", dsn.replace("postgresql://", "postgresql+asyncpg://"))
    assert result.exit_code == 0, result.output


Pgbouncer = Callable[[str], str]


@pytest.fixture
def pgbouncer(dsn: str, tmp_path: Path) -> Iterator[Pgbouncer]:
    """Start PgBouncers in front of the test's database; each is asked for by its pool_mode."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    address = {name: value for name, value in conninfo_to_dict(dsn).items() if name != "dbname"}
    started: list[subprocess.Popen[str]] = []

    def start(pool_mode: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = tmp_path / f"{pool_mode}.ini"
        settings.write_text(
            f"[databases]\n* = {make_conninfo(**address)}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"  # type: ignore[arg-type]
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {pool_mode}\n"
        )
        root = ["--user=nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [program, *root, settings], stderr=subprocess.PIPE, text=True, cwd="/"
        )
        started.append(process)
        assert process.stderr
        for line in process.stderr:
            if "process up" in line:
                break
        else:
            pytest.fail("pgbouncer did not start")
        return make_conninfo(dsn, host="127.0.0.1", port=port)

    yield start
    for process in started:
        process.terminate()
        process.communicate()


def test_pgbouncer_that_pools_transactions(pgbouncer: Pgbouncer) -> None:
    """Behind it, jobs are deferred; what else to mind is a hint, and the exit status is 0, also the second time."""
    dsn = pgbouncer("transaction")
    for _ in range(2):
        status, found = examine(dsn)
        assert status == 0
        assert found["pooler"]["status"] == "hint"
        assert "PgBouncer" in found["pooler"]["text"]
        assert "statement_cache_size=0" in found["pooler"]["fix"]


def test_pgbouncer_that_pools_sessions(pgbouncer: Pgbouncer) -> None:
    """Behind it, all is as without."""
    status, found = examine(pgbouncer("session"))
    assert status == 0
    assert found["pooler"]["status"] == "ok"


def test_pgbouncer_that_pools_statements(pgbouncer: Pgbouncer) -> None:
    """It allows no transactions, and so there can be no job in one."""
    status, found = examine(pgbouncer("statement"))
    assert status == 1
    assert found["pooler"]["status"] == "problem"
    assert "pool_mode" in found["pooler"]["fix"]


def test_pgbouncer_refuses_options(pgbouncer: Pgbouncer) -> None:
    """A setting in the DSN that PgBouncer refuses is told with what to do."""
    status, found = examine(make_conninfo(pgbouncer("session"), options="-csearch_path=public"))
    assert status == 1
    assert "ignore_startup_parameters" in found["server"]["fix"]
