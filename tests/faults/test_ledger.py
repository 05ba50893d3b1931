"""The audit that all fault tests end in sees what it is there to see."""

from __future__ import annotations

import random

import psycopg
import pytest
from faults.ledger import Ledger
from faults.table import table

from procrastinate_extconn.kinds import Held, all_kinds, run

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture
def ledger(dsn: str) -> Ledger:
    """A ledger with transactions that nothing has happened to."""
    ledger = Ledger(all_kinds()[0], dsn, random.Random(1))
    for _ in range(20):
        run(ledger.kind, dsn, ledger.transact)
    return ledger


def test_nothing_is_wrong(ledger: Ledger) -> None:
    """Without a fault all transactions commit or roll back, and nothing is found."""
    audit = ledger.audit()
    assert audit.figures == (20, 0, audit.committed, 0)
    assert 0 < audit.committed < 20
    assert not audit.problems


@pytest.mark.parametrize(
    ("damage", "orphans"),
    [
        ("INSERT INTO orders (id) VALUES (1000)", 1),
        ("DELETE FROM orders WHERE id = (SELECT max(id) FROM orders)", 1),
        ("DELETE FROM procrastinate_jobs WHERE id = (SELECT max(id) FROM procrastinate_jobs)", 1),
        (
            """
            INSERT INTO procrastinate_jobs (task_name, queue_name, args)
            SELECT task_name, queue_name, args FROM procrastinate_jobs ORDER BY id LIMIT 1
            """,
            1,
        ),
        ("DELETE FROM procrastinate_jobs; DELETE FROM orders", 0),
    ],
    ids=["row-alone", "job-alone", "job-lost", "job-twice", "commit-lost"],
)
def test_damage_is_found(ledger: Ledger, damage: str, orphans: int) -> None:
    """An orphan on either side, a job that is there twice and a lost commit are found."""
    with psycopg.connect(ledger.dsn) as conn:
        for statement in damage.split(";"):
            conn.execute(statement)
    audit = ledger.audit()
    assert audit.orphans == orphans
    assert audit.problems


def test_a_commit_that_nobody_asked_for_is_found(ledger: Ledger) -> None:
    """A row with its job is a problem where its transaction was never to be committed."""

    async def body(held: Held) -> None:
        order = ledger.begin()
        await ledger.insert(held, order)
        await ledger.defer(held.conn, order)
        held.commit()

    run(ledger.kind, ledger.dsn, body)
    audit = ledger.audit()
    assert audit.orphans == 0
    assert audit.problems == ["there without a commit: 21"]


def test_the_table() -> None:
    """Transactions of each kind under each fault, and all of them, with orphans where there are any."""
    figures = [("killed", "psycopg", (1000, 5, 900, 0)), ("killed", "asyncpg", (10, 1, 9, 2))]
    figures += [("cancelled", "asyncpg", (100, 1, 2, 0))]
    rows = [line.split() for line in table(figures).splitlines()]
    assert rows == [
        ["killed", "cancelled", "all"],
        ["psycopg", "1,000", "-", "1,000"],
        ["asyncpg", "10", "(2", "orphans)", "100", "110", "(2", "orphans)"],
        [],
        ["transactions", "1,010", "100", "1,110"],
        ["of", "them", "hit", "6", "1", "7"],
        ["rows", "committed", "909", "2", "911"],
        ["orphans", "2", "0", "2"],
    ]
