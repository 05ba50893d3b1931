"""The example applications, served over HTTP, with a worker, on a real database."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

EXAMPLES = Path(__file__).parents[1] / "docs/examples"


class Example(NamedTuple):
    """An application, and the commands that its first page tells people to run."""

    name: str
    requires: tuple[str, ...]
    prepare: tuple[str, ...]
    serve: tuple[str, ...]
    work: tuple[str, ...]
    forget: tuple[str, ...] = ("-c", "import shop; shop.confirm_order.defer(order_id=1)")
    """Defers without a connection, which no page tells anybody to."""


_PROCRASTINATE = ("-m", "procrastinate", "--app=shop.queue")

ALL = [
    Example(
        "fastapi",
        ("fastapi", "sqlalchemy"),
        (*_PROCRASTINATE, "schema", "--apply"),
        ("-m", "uvicorn", "shop:api", "--port"),
        (*_PROCRASTINATE, "worker", "--one-shot"),
    ),
    Example(
        "fastapi_asyncpg",
        ("fastapi", "procrastinate_extconn_asyncpg"),
        (*_PROCRASTINATE, "schema", "--apply"),
        ("-m", "uvicorn", "shop:api", "--port"),
        (*_PROCRASTINATE, "worker", "--one-shot"),
    ),
    Example(
        "flask",
        ("flask", "sqlalchemy"),
        (*_PROCRASTINATE, "schema", "--apply"),
        ("-m", "flask", "--app", "shop", "run", "--port"),
        (*_PROCRASTINATE, "worker", "--one-shot"),
    ),
    Example(
        "django",
        ("procrastinate_extconn_django",),
        ("manage.py", "migrate"),
        ("manage.py", "runserver", "--noreload"),
        ("manage.py", "procrastinate", "worker", "--one-shot"),
        (
            "manage.py",
            "shell",
            "-c",
            "from shop.tasks import confirm_order; confirm_order.defer(order_id=1)",
        ),
    ),
]


class Shop:
    """A running application."""

    def __init__(self, example: Example, dsn: str) -> None:
        self._example = example
        self._env = {**os.environ, "PYTHONPATH": ".", "PYTHONWARNINGS": "error"}
        for name, value in conninfo_to_dict(dsn).items():
            self._env["PGDATABASE" if name == "dbname" else f"PG{name.upper()}"] = str(value)
        self._port = 0

    def run(self, *arguments: str) -> None:
        """Run a command to its end."""
        finished = self._finished(*arguments)
        assert finished.returncode == 0, finished.stderr

    def forget(self) -> str:
        """Defer a job without a connection, outside a request, and return what is printed."""
        return self._finished(*self._example.forget).stderr

    def _finished(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=EXAMPLES / self._example.name,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        """Serve while the block runs."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, *self._example.serve, str(self._port)],
            cwd=EXAMPLES / self._example.name,
            env=self._env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_for(server)
            yield
        finally:
            server.terminate()
            server.wait()

    def _wait_for(self, server: subprocess.Popen[bytes]) -> None:
        while server.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self._port)).close()
                return
            time.sleep(0.05)  # leaves the processor to the server
        pytest.fail(f"the server ended with status {server.returncode}")

    def order(self, order_id: int, *, paid: bool) -> int:
        """Place an order, and get the status of the response."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/orders/{order_id}?paid={str(paid).lower()}",
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=180) as response:
                return int(response.status)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code

    def work(self) -> None:
        """Run the jobs that are there."""
        self.run(*self._example.work)


@pytest.fixture(params=ALL, ids=lambda example: example.name)
def shop(request: pytest.FixtureRequest, empty_dsn: str) -> Shop:
    """Every example application, on a database where it has made its tables."""
    example: Example = request.param
    for module in example.requires:
        pytest.importorskip(module)
    shop = Shop(example, empty_dsn)
    shop.run(*example.prepare)
    return shop


@pytest.mark.timeout(600)  # half a dozen programs, one after the other
def test_an_order_has_its_job_or_neither_is_there(shop: Shop, empty_dsn: str) -> None:
    """A request that succeeds leaves an order whose job runs once; one that fails after deferring leaves neither."""
    with shop.serve():
        assert shop.order(1, paid=True) == 201
        assert shop.order(2, paid=False) == 402
        assert shop.order(1, paid=True) >= 500  # a key that is taken: an error of the database's
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        assert conn.execute("SELECT id FROM shop_order").fetchall() == [(1,)]
        query = "SELECT args, status::text FROM procrastinate_jobs"
        assert conn.execute(query).fetchall() == [({"order_id": 1}, "todo")]
        shop.work()
        assert conn.execute("SELECT order_id FROM shop_confirmation").fetchall() == [(1,)]
        assert conn.execute(query).fetchall() == [({"order_id": 1}, "succeeded")]
        shop.work()
        assert conn.execute("SELECT count(*) FROM shop_confirmation").fetchone() == (1,)


def test_a_forgotten_connection_is_refused(shop: Shop, empty_dsn: str) -> None:
    """A job that an application defers outside its transactions is an error, and is not there."""
    assert "OutsideTransaction: " in shop.forget()
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() == (0,)


def test_every_application_is_run() -> None:
    """An application in the examples is one that these tests run, or the plugin, which has a test of its own."""
    folders = {
        path.name for path in EXAMPLES.iterdir() if path.is_dir() and any(path.glob("**/*.py"))
    }
    assert folders == {"plugin", *(example.name for example in ALL)}


def test_the_tests_of_the_django_project_pass(empty_dsn: str) -> None:
    """The tests that the project has for itself pass with Django's runner, on a database that it makes."""
    pytest.importorskip("procrastinate_extconn_django")
    [django] = [example for example in ALL if example.name == "django"]
    Shop(django, empty_dsn).run("manage.py", "test")
