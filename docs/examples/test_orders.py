"""What `place_order` defers, seen from inside a transaction that is rolled back."""

from collections.abc import Iterator

import procrastinate
import psycopg
import pytest

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import assert_deferred, deferred_jobs, rolled_back

extconn.install()

app = procrastinate.App(connector=procrastinate.PsycopgConnector())


@app.task(name="process_order")
def process_order(order_id: int) -> None: ...


def place_order(conn: psycopg.Connection, order_id: int) -> None:
    conn.execute("INSERT INTO orders (id) VALUES (%s)", [order_id])
    process_order.configure(connection=conn).defer(order_id=order_id)


@pytest.fixture
def conn() -> Iterator[psycopg.Connection]:
    with psycopg.connect() as conn, rolled_back(conn):
        yield conn


@pytest.mark.parametrize("order_id", [42, 43])
def test_an_order_is_processed(conn: psycopg.Connection, order_id: int) -> None:
    place_order(conn, order_id)
    assert_deferred(conn, process_order, order_id=order_id)
    assert len(deferred_jobs(conn)) == 1  # the other test's job is gone
