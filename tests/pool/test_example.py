"""The application with one pool for web and worker, served over HTTP, and stopped by signals."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from example_shop import Example, Shop

pytestmark = [pytest.mark.programs, pytest.mark.timeout(300)]

EXAMPLE = Example(
    "fastapi_worker",
    ("fastapi", "procrastinate_extconn_asyncpg"),
    ("-m", "procrastinate", "--app=shop.queue", "schema", "--apply"),
    ("-m", "uvicorn", "shop:api", "--port"),
    ("worker.py",),
)


@pytest.fixture
def shop(empty_dsn: str) -> Shop:
    """The application, on a database where Procrastinate has its schema."""
    for module in EXAMPLE.requires:
        pytest.importorskip(module)
    shop = Shop(EXAMPLE, empty_dsn)
    shop.run(*EXAMPLE.prepare)
    return shop


@pytest.fixture
def fetch(empty_dsn: str) -> Iterator[Callable[[str], list[Any]]]:
    """Ask the database, at a look of its own each time."""
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        yield lambda query: conn.execute(query.encode()).fetchall()


@pytest.fixture(params=["in the same process", "in one of its own"])
def worker(request: pytest.FixtureRequest, shop: Shop) -> Iterator[subprocess.Popen[bytes]]:
    """The process that works, while the shop is served."""
    with contextlib.ExitStack() as stack:
        if request.param == "in the same process":
            yield stack.enter_context(shop.serve())
        else:
            stack.enter_context(shop.serve(WORKER="elsewhere"))
            yield stack.enter_context(shop.start(*EXAMPLE.work))


def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.02)  # leaves the processor to the others


_JOBS = "SELECT (args->>'order_id')::int, status::text FROM procrastinate_jobs ORDER BY id"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_orders_are_confirmed_until_a_signal_comes(
    shop: Shop,
    worker: subprocess.Popen[bytes],
    fetch: Callable[[str], list[Any]],
    empty_dsn: str,
    stop: signal.Signals,
) -> None:
    """Each order that was paid is confirmed, at once; a job that runs when the signal comes still ends."""
    _, first = shop.order(paid=True)
    assert shop.order(paid=False)[0] == 402
    eventually(lambda: fetch(_JOBS) == [(first["id"], "succeeded")])
    assert fetch("SELECT order_id FROM confirmations") == [(first["id"],)]
    with psycopg.connect(empty_dsn) as conn:
        conn.execute("LOCK TABLE confirmations IN ACCESS EXCLUSIVE MODE")
        status, second = shop.order(paid=True)
        assert status == 201
        eventually(lambda: fetch("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        worker.send_signal(stop)
        conn.rollback()
    worker.wait(60)
    assert fetch(_JOBS)[1:] == [(second["id"], "succeeded")]
    assert fetch("SELECT order_id FROM confirmations") == [(first["id"],), (second["id"],)]
    assert fetch("SELECT * FROM procrastinate_workers") == []
