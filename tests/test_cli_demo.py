"""``procrastinate-extconn demo``: it shows what it says, finds what is wrong, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Literal

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds
from procrastinate_extconn.known_plugins import KNOWN

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from procrastinate_extconn.cli import demo
from procrastinate_extconn.cli.demo import report
from procrastinate_extconn.cli.demo.interrupts import Interrupts
from procrastinate_extconn.cli.group import cli

DEMO = [sys.executable, "-c", "from procrastinate_extconn.cli import main; main()", "demo"]
pytestmark = pytest.mark.timeout(300)  # a demo imports every driver

INSTALLED = [kind.id for kind in all_kinds() if not kind.missing()]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Make a folder for temporary folders, where everybody may look for theirs."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def processes(folder: Path) -> list[str]:
    """Return the command lines that speak of *folder*, where the system shows them."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return [line for line in found if str(folder) in line]


def leftovers(dsn: str, pid: int | None = None) -> list[Any]:
    """Return the databases and schemas that a demo has made on a server.

    :param pid: the demo's process; this one if None.
    """
    with psycopg.connect(dsn) as conn:
        return conn.execute(
            "SELECT datname FROM pg_database WHERE datname ~ %(name)s "
            "UNION SELECT nspname FROM pg_namespace WHERE nspname ~ %(name)s",
            {"name": f"^procrastinate_extconn_demo_{pid or os.getpid()}_"},
        ).fetchall()


def table(output: str) -> dict[str, list[str]]:
    """Return what the table says of each kind of connection, or of each plugin."""
    rows = [line.split() for line in output.splitlines()]
    return {row[0]: row[-3:] for row in rows if len(row) > 3 and {*row[-3:]} <= {"yes", "no"}}


def run(*args: str) -> Result:
    """Run the demo in this process."""
    try:
        return CliRunner().invoke(cli, ["demo", *args])
    finally:
        extconn.uninstall()


def test_own_server(temporary: Path) -> None:
    """It shows each kind of connection on a server of its own, and the code to use; nothing is left."""
    # What is meant for another server does not lead it astray.
    environment = {
        "TMPDIR": str(temporary),
        "PGHOSTADDR": "192.0.2.1",
        "PGOPTIONS": "-c nonsense=1",
    }
    with subprocess.Popen(
        [*DEMO, "--verbose"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert process.stderr.readline() == "Starting PostgreSQL ...\n"
        assert process.stderr.readline() == "Committing and rolling back orders ...\n"
        assert list(temporary.iterdir())
        if sys.platform == "linux":
            assert processes(temporary)
        stdout, stderr = process.communicate()
    assert process.returncode == 0
    assert stderr == "Running the jobs with a worker ...\n"
    assert table(stdout) == {kind: ["yes", "yes", "yes"] for kind in INSTALLED}
    assert "extconn.install()" in stdout
    assert "process_order.configure(connection=conn).defer(order_id=42)" in stdout
    assert not list(temporary.iterdir())
    assert not processes(temporary)


@pytest.mark.parametrize("missing", [[], list(KNOWN)], ids=str)
def test_short(dsn: str, missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The result fits a terminal of 80 columns and 24 lines, and names each plugin, the missing ones too."""
    if missing:
        monkeypatch.setattr(report, "_missing_plugins", lambda: missing)
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["demo", "--dsn", dsn])
    extconn.uninstall()
    lines = [
        part
        for line in result.stdout.splitlines()
        if "..." not in line
        for part in textwrap.wrap(line, 80) or [""]
    ]
    assert len(lines) - len(missing) <= 24  # each has a line in this table, and would have none
    assert all(line == line.rstrip() for line in lines)
    shown = table(result.stdout)
    assert len(shown) == len({kind.plugin for kind in all_kinds() if not kind.missing()})
    assert shown["psycopg"] == ["yes"] * 3
    for name in missing:
        assert name in result.stdout.partition("Not installed: ")[2]


def test_keep(temporary: Path) -> None:
    """With --keep the server stays, with an empty database and the ways to it, until Ctrl-C."""
    with subprocess.Popen(
        [*DEMO, "--keep"],
        # An empty value: what is printed waits in a buffer, as it does for users.
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        _read_until(process.stdout, "The server runs until")
        _read_until(process.stdout, "    export PG")
        assert process.stdout.readline() == "\n"
        with psycopg.connect(process.stdout.readline().strip()) as conn:
            assert conn.info.dbname == "shop"
            assert conn.execute("SELECT to_regclass('orders')").fetchall() == [(None,)]
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 0
    assert stderr.endswith("Interrupted. Nothing is left behind.\n")
    assert not list(temporary.iterdir())
    assert not processes(temporary)


def test_keep_on_a_given_server() -> None:
    """--keep with --dsn is refused: there is no server of the demo's to keep."""
    result = run("--keep", "--dsn", "postgresql:///shop")
    assert result.exit_code == 2
    assert "leave out --dsn" in result.output


def test_given_server(dsn: str) -> None:
    """On a server that is given, it works in a database of its own, which is gone afterwards."""
    result = run("--dsn", dsn, "--json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout[result.stdout.index("{") :])
    assert shown["ok"] is True
    assert f", in database procrastinate_extconn_demo_{os.getpid()}_" in shown["server"]
    assert [kind["kind"] for kind in shown["kinds"]] == INSTALLED
    for kind in shown["kinds"]:
        assert kind["committed_together"] and kind["rolled_back_together"] and kind["run_by_worker"]
    assert not leftovers(dsn)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchall() == [(0,)]


@pytest.fixture
def role(dsn: str) -> Iterator[tuple[str, str]]:
    """Make a role that may do little; give its name, and the DSN with it and its password."""
    name, password = f"extconn_{secrets.token_hex(4)}", secrets.token_hex(8)
    with psycopg.connect(dsn, autocommit=True) as conn:
        if conn.info.parameter_status("is_superuser") != "on":
            pytest.skip("the user of the test server may not create roles")
        conn.execute(
            SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(Identifier(name), Literal(password))
        )
        yield name, make_conninfo(dsn, user=name, password=password)
        conn.execute(SQL("DROP OWNED BY {}").format(Identifier(name)))
        conn.execute(SQL("DROP ROLE {}").format(Identifier(name)))


def test_role_without_databases(dsn: str, role: tuple[str, str]) -> None:
    """A role that may not create databases gets a schema, on every driver, and is told."""
    name, its_dsn = role
    with psycopg.connect(dsn) as conn:
        grant = SQL("GRANT CREATE ON DATABASE {} TO {}")
        conn.execute(grant.format(Identifier(conn.info.dbname), Identifier(name)))
    result = run("--dsn", its_dsn)
    assert result.exit_code == 0, result.output
    assert f", in schema procrastinate_extconn_demo_{os.getpid()}_" in result.output
    assert not leftovers(dsn)
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchall() == [(0,)]


def test_role_without_rights(role: tuple[str, str]) -> None:
    """A role that may create neither is told so, and the exit status is 1."""
    result = run("--dsn", role[1])
    assert result.exit_code == 1
    assert "Error: " in result.output
    assert "permission denied for database" in result.output


def test_unreachable() -> None:
    """A server that is not reached is the reason given, without the password."""
    result = run("--dsn", "postgresql://someone:geheim@127.0.0.1:1/shop")
    assert result.exit_code == 1
    assert "Connecting to shop on 127.0.0.1:1 as someone ..." in result.output
    assert "Error: " in result.output
    assert "geheim" not in result.output


@contextlib.contextmanager
def _in_autocommit(dsn: str) -> Iterator[Held]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield Held(conn, conn.execute, conn.commit, conn.rollback)


@contextlib.contextmanager
def _telling_secrets(dsn: str) -> Iterator[Held]:
    raise RuntimeError(f"cannot use {dsn}")
    yield


@pytest.mark.parametrize(
    ("opened", "reason"),
    [
        (_in_autocommit, "before the commit, the order was there and its job was there"),
        (_telling_secrets, "RuntimeError: cannot use "),
    ],
)
def test_not_as_it_should_be(
    opened: Callable[[str], Any], reason: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind of connection that fails is named with the reason, the others go on, and the exit status is 1."""
    password = psycopg.conninfo.conninfo_to_dict(dsn).get("password") or "no password"
    odd = Kind("odd", "psycopg", ("psycopg",), False, opened)
    absent = Kind("absent", "psycopg", ("psycopg", "a_driver"), False, opened)
    kinds = (all_kinds()[0], odd, absent)
    for module in (demo, report):
        monkeypatch.setattr(module, "all_kinds", lambda: kinds)
    result = run("--verbose", "--dsn", dsn)
    assert result.exit_code == 1
    assert table(result.output) == {all_kinds()[0].id: ["yes"] * 3, "odd": ["no"] * 3}
    assert f"odd: {reason}" in result.output
    assert password not in result.output
    assert "absent: pip install a-driver" in result.output
    assert "Not as it should be: 1 of 2 kinds of connection." in result.output
    assert not leftovers(dsn)


def test_interrupted_where_nothing_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C in a weak reference's callback is no error to report, and ends the demo a little later."""
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    dropped = {1}
    reference = weakref.ref(dropped, lambda _: signal.raise_signal(signal.SIGINT))
    with Interrupts() as interrupts:
        with interrupts.allowed():
            del dropped
        assert reference() is None
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            pass
    assert not reported


def _read_until(stream: IO[str], stage: str) -> None:
    while not (line := stream.readline()).startswith(stage):
        assert line, f"it ended before {stage}"


@pytest.mark.parametrize(
    ("on_given_server", "stage", "number"),
    [
        (False, "Starting", signal.SIGINT),
        (False, "Committing", signal.SIGTERM),
        (False, "Running", signal.SIGTERM),
        (True, "Connecting", signal.SIGTERM),
        (True, "Committing", signal.SIGINT),
    ],
)
def test_interrupted(
    on_given_server: bool, stage: str, number: signal.Signals, temporary: Path, dsn: str
) -> None:
    """Ctrl-C and SIGTERM, at a random moment of each stage, leave nothing behind and give their exit status."""
    with subprocess.Popen(
        [*DEMO, *(["--dsn", dsn] if on_given_server else [])],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr
        _read_until(process.stderr, stage)
        moment = random.uniform(0, 0.5 if stage == "Committing" else 0.1)
        print(f"{moment} s after {stage}")  # noqa: T201 - shown where it fails
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        # As a terminal does: to the whole process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        stdout, stderr = process.communicate()
    if process.returncode != 0:  # It may have been done before the signal came.
        assert process.returncode == 128 + number
        assert stderr.endswith("Interrupted. Nothing is left behind.\n")
        assert "Traceback" not in stderr
        assert stdout == ""
    assert not list(temporary.iterdir())
    assert not processes(temporary)
    assert not leftovers(dsn, process.pid)
