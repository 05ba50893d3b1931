"""Jobs that are huge or odd are stored equal, or refused with a reason that tells what became of the transaction."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from faults.chance import LONG
from faults.fidelity import PLACES, Fidelity, placed
from faults.ledger import Ledger

from procrastinate_extconn.kinds import Held, Kind, done, run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

MEGABYTES = [1, 10, 50] if LONG else [1]
BATCH = 100_000 if LONG else 1_000


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HALF_PAIRS = {
    "args": "\ud800",
    "key": "a\udfff",
    "queue": "\ud83d",
    "lock": "a\ud800b",
    "queueing_lock": "\udc00",
}
IN_JSON = ("args", "key")
REFUSED = [
    *((*placed(place, "a\0b"), "a NUL character") for place in PLACES),
    *((*placed(place, HALF_PAIRS[place]), "half a surrogate pair") for place in IN_JSON),
    *(
        (*placed(place, HALF_PAIRS[place]), "cannot be encoded|half a surrogate pair")
        for place in PLACES[2:]
    ),
    ({"value": float("nan")}, {}, "NaN, Infinity"),
    ({"value": [float("-inf")]}, {}, "NaN, Infinity"),
]
TAKEN = [
    nested(100),  # Python 3.11 and before run out of stack soon after
    [10**4000, -(2**63), 1e-300, 0.1],
    '\u2028\u2029\ufeff\uffff\U0010ffff\x7f\x80"\\/',
]


def test_odd(kind: Kind, dsn: str, rng: random.Random, audit: Callable, sized: Callable) -> None:
    """NUL, NaN and half a surrogate pair are refused wherever they stand, deep nesting is not."""
    ledger = Ledger(kind, dsn, rng)
    for arguments, options, reason in rng.sample(REFUSED, sized(4, len(REFUSED))):
        fidelity = Fidelity(ledger, reason)
        run(kind, dsn, functools.partial(fidelity.transact, arguments=arguments, options=options))
        assert not fidelity.sent
    fidelity = Fidelity(ledger, "nothing of these")
    for value in TAKEN:
        run(kind, dsn, functools.partial(fidelity.transact, arguments={"value": value}, options={}))
    assert fidelity.stored() == fidelity.sent
    assert len(fidelity.sent) == len(TAKEN)
    audit("odd", ledger)


def test_nested_too_deeply(kind: Kind, dsn: str, rng: random.Random, audit: Callable) -> None:
    """What is nested too deeply for the server is refused, and the transaction with it."""
    deep = f'{{"value": {"[" * 100_000}{"]" * 100_000}}}'
    ledger = Ledger(kind, dsn, rng, lambda job: deep if "deep" in job else json.dumps(job))
    fidelity = Fidelity(ledger, "max_stack_depth")
    run(kind, dsn, functools.partial(fidelity.transact, arguments={"deep": True}, options={}))
    assert not fidelity.sent
    audit("odd", ledger)


@pytest.mark.parametrize("megabytes", MEGABYTES)
def test_large(kind: Kind, dsn: str, rng: random.Random, audit: Callable, megabytes: int) -> None:
    """A large text arrives as it was sent."""
    ledger = Ledger(kind, dsn, rng)
    text = rng.randbytes(megabytes * 2**19).hex()

    async def body(held: Held) -> None:
        order = ledger.begin()
        await ledger.insert(held, order)
        await ledger.defer(held.conn, order, {"text": text})
        await ledger.commit(held, order)

    run(kind, dsn, body)
    assert audit("large", ledger).committed == 1
    with psycopg.connect(dsn) as conn:
        arrived = conn.execute("SELECT md5(args ->> 'text') FROM procrastinate_jobs").fetchone()
    assert arrived == (hashlib.md5(text.encode()).hexdigest(),)


def test_batch(kind: Kind, dsn: str, rng: random.Random, audit: Callable) -> None:
    """A large batch arrives whole, its ids in the order of its jobs."""
    ledger = Ledger(kind, dsn, rng)

    async def body(held: Held) -> list[int]:
        orders = [ledger.begin(), *(ledger.next_order() for _ in range(1, BATCH))]
        deferrer = ledger.task.configure(connection=held.conn)
        defer = deferrer.batch_defer_async if kind.is_async else deferrer.batch_defer
        ids: list[int] = await done(defer(*({"order_id": order} for order in orders)))
        await done(held.execute(f"INSERT INTO orders SELECT generate_series(1, {BATCH})"))
        await ledger.commit(held, *orders)
        return ids

    ids = run(kind, dsn, body)
    assert audit("large", ledger).committed == BATCH
    with psycopg.connect(dsn) as conn:
        query = "SELECT id FROM procrastinate_jobs ORDER BY (args ->> 'order_id')::bigint"
        assert ids == sorted(ids) == [job_id for (job_id,) in conn.execute(query)]
