"""The database's encoding is not UTF-8: what it cannot store is an error, never another value."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Container

import psycopg
import pytest
from faults.ledger import Ledger
from faults.servers import new_database
from procrastinate.exceptions import ConnectorException

import procrastinate_extconn as extconn
from procrastinate_extconn.embedded import TemporaryServer
from procrastinate_extconn.kinds import Held, Kind, done, run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

TEXTS = ["plain", "é ÿ", "€", "\x80\x9f", "日本語", "🙂", "e\u0301"]
PLACES = ["args", "key", "queue", "lock", "queueing_lock"]

Job = tuple[dict[str, object], str, str | None, str | None]

# As bytes, since psycopg would have a say in what they mean.
_STORED = """
SELECT convert_to(args::text, 'UTF8'), convert_to(queue_name, 'UTF8'),
    convert_to(lock, 'UTF8'), convert_to(queueing_lock, 'UTF8')
FROM procrastinate_jobs
"""


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding(
    kind: Kind,
    encoding: str,
    server: TemporaryServer,
    rng: random.Random,
    audit: Callable,
    sized: Callable,
) -> None:
    """A text comes back as it was, or is refused with a reason that tells what has become of the transaction."""
    if encoding == "SQL_ASCII" and {"sqlalchemy", "psycopg"} <= {*kind.requires}:
        pytest.skip("SQLAlchemy on psycopg reads no text from such a database")
    chosen = list(itertools.product(PLACES, TEXTS))
    rng.shuffle(chosen)
    with new_database(server, f"TEMPLATE template0 LOCALE 'C' ENCODING '{encoding}'") as dsn:
        ledger = Ledger(kind, dsn, rng)
        sent: dict[int, Job] = {}
        for place, text in chosen[: sized(5, None)]:
            run(kind, dsn, lambda held: transact(ledger, held, place, text, sent))  # noqa: B023 - at once
        audit(encoding, ledger)
        assert sent == stored(dsn, sent)


async def transact(ledger: Ledger, held: Held, place: str, text: str, sent: dict[int, Job]) -> None:
    """Defer a job with *text* in one place, or without it if it was refused and the transaction is said to go on."""
    order = ledger.begin()
    await ledger.insert(held, order)
    conn = extconn.external(held.conn, savepoint=ledger.rng.random() < 0.5)
    arguments: dict[str, str] = {"args": {"text": text}, "key": {text: "text"}}.get(place, {})
    options = {} if arguments else {place: text}
    try:
        await ledger.defer(conn, order, arguments, **options)
    except ConnectorException as exc:
        reason = str(exc)
    else:
        sent[order] = (
            {"order_id": order, **arguments},
            options.get("queue", "default"),
            options.get("lock"),
            options.get("queueing_lock"),
        )
        await ledger.commit(held, order)
        return
    assert "encod" in reason
    if "Your transaction is as it was before." in reason:
        await ledger.defer(held.conn, order)
        await ledger.commit(held, order)
    else:
        assert "Your transaction has failed" in reason or ledger.kind.id == "psqlpy"
        await done(held.rollback())


def stored(dsn: str, orders: Container[int]) -> dict[int, Job]:
    """What the jobs of *orders* became."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(_STORED).fetchall()
    jobs = [tuple(column and column.decode() for column in row) for row in rows]
    found = {
        (arguments := json.loads(args))["order_id"]: (arguments, *rest) for args, *rest in jobs
    }
    return {order: job for order, job in found.items() if order in orders}
