"""The example applications, served over HTTP, with a worker, on a real database."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from example_shop import EXAMPLES, Example, Shop

pytestmark = [pytest.mark.programs, pytest.mark.timeout(600)]

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
        ("shop_order", "shop_confirmation"),
        (
            "manage.py",
            "shell",
            "-c",
            "from shop.tasks import confirm_order; confirm_order.defer(order_id=1)",
        ),
    ),
]


OUTBOX = Example(
    "fastapi_outbox",
    ("fastapi", "aiosqlite", "procrastinate_extconn_outbox"),
    (*_PROCRASTINATE, "schema", "--apply"),
    ("-m", "uvicorn", "shop:api", "--port"),
    (*_PROCRASTINATE, "worker", "--one-shot"),
)
_RELAY = ("-c", "from procrastinate_extconn_outbox.cli import main; main()", "relay", "--no-wait")


@pytest.fixture(params=ALL, ids=lambda example: example.name)
def shop(request: pytest.FixtureRequest, empty_dsn: str) -> Shop:
    """Every example application, on a database where it has made its tables."""
    example: Example = request.param
    for module in example.requires:
        pytest.importorskip(module)
    shop = Shop(example, empty_dsn)
    shop.run(*example.prepare)
    return shop


@pytest.fixture
def fetch(empty_dsn: str) -> Iterator[Callable[[str], list[Any]]]:
    """Ask the database, at a look of its own each time."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        yield lambda query: conn.execute(query.encode()).fetchall()


def test_an_order_has_its_job_or_neither_is_there(
    shop: Shop, fetch: Callable[[str], list[Any]]
) -> None:
    """A request that succeeds leaves an order whose job runs once; one that fails after deferring leaves neither."""
    refused = (402, {"detail": "The payment was refused."})
    with shop.serve():
        answers = [shop.order(paid=paid) for paid in (True, False, True, False)]
    assert answers[1::2] == [refused, refused]
    [(status, first), (_, second)] = answers[::2]
    assert status == 201
    assert first["id"] != second["id"]
    expected = [(first["id"],), (second["id"],)]
    orders, confirmations = shop.tables
    assert fetch(f"SELECT id FROM {orders} ORDER BY id") == expected
    of_jobs = (
        "SELECT (args->>'order_id')::int FROM procrastinate_jobs WHERE status = '{}' ORDER BY id"
    )
    assert fetch(of_jobs.format("todo")) == expected
    for _ in range(2):  # there is nothing more to do the second time
        shop.work()
        assert fetch(f"SELECT order_id FROM {confirmations} ORDER BY id") == expected
        assert fetch(of_jobs.format("succeeded")) == expected


def test_orders_in_sqlite(empty_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order in SQLite and its job in PostgreSQL are both there or neither is, and a second run confirms nothing."""
    for module in OUTBOX.requires:
        pytest.importorskip(module)
    file = tmp_path / "shop.sqlite"
    monkeypatch.setenv("SHOP", str(file))
    shop = Shop(OUTBOX, empty_dsn)
    shop.run(*OUTBOX.prepare)
    with shop.serve():
        answers = [shop.order(paid=paid) for paid in (True, False)]
    assert answers == [(201, {"id": 1}), (402, {"detail": "The payment was refused."})]
    relay = (*_RELAY, "--from", f"sqlite:///{file}", "--app", "shop.queue")
    with (
        contextlib.closing(sqlite3.connect(file)) as rows,
        psycopg.connect(empty_dsn, autocommit=True) as conn,
    ):
        assert rows.execute("SELECT id FROM orders").fetchall() == [(1,)]
        query = "SELECT args, status::text FROM procrastinate_jobs"
        assert conn.execute(query).fetchall() == []
        shop.run(*relay)
        assert conn.execute(query).fetchall() == [({"order_id": 1}, "todo")]
        for _ in range(2):
            shop.work()
            assert rows.execute("SELECT order_id FROM confirmations").fetchall() == [(1,)]
            assert conn.execute(query).fetchall() == [({"order_id": 1}, "succeeded")]
            # As if the worker had died before it could say so.
            conn.execute("ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER")
            conn.execute("UPDATE procrastinate_jobs SET status = 'todo'")


def test_a_forgotten_connection_is_refused(shop: Shop, empty_dsn: str) -> None:
    """A job that an application defers outside its transactions is an error, and is not there."""
    assert "OutsideTransaction: " in shop.forget()
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() == (0,)


def test_every_application_is_run() -> None:
    """An application in the examples is one that these tests run, or has tests of its own, as plugins have."""
    folders = {
        path.name for path in EXAMPLES.iterdir() if path.is_dir() and any(path.glob("**/*.py"))
    }
    assert folders == {"plugins", "fastapi_worker", *(example.name for example in (*ALL, OUTBOX))}


def test_the_tests_of_the_django_project_pass(empty_dsn: str) -> None:
    """The tests that the project has for itself pass with Django's runner, on a database that it makes."""
    pytest.importorskip("procrastinate_extconn_django")
    [django] = [example for example in ALL if example.name == "django"]
    Shop(django, empty_dsn).run("manage.py", "test")
