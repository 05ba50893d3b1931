"""One connection defers jobs without end: nothing grows with their number."""

from __future__ import annotations

import gc
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.chance import LONG
from faults.ledger import Ledger

from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

JOBS = 100_000 if LONG else 2_000
ONE_OF_EACH = ("psycopg", "psycopg2", "sqlalchemy-async-session-asyncpg", "asyncpg", "psqlpy")
ENDURING = [kind for kind in all_kinds() if LONG or kind.id in ONE_OF_EACH]


@pytest.mark.parametrize("kind", ENDURING, ids=lambda kind: kind.id, indirect=True)
@pytest.mark.filterwarnings("ignore:the plugin 'psqlpy' does not tell")
def test_nothing_grows(kind: Kind, dsn: str, rng: random.Random, audit: Callable) -> None:
    """After the first thousand jobs, neither memory grows any more nor the driver's prepared statements."""
    ledger = Ledger(kind, dsn, rng)

    async def body(held: Held) -> None:
        orders = [ledger.begin(), *(ledger.next_order() for _ in range(1, JOBS))]
        for order in orders[:1000]:
            await ledger.defer(held.conn, order)
        before = used()
        for order in orders[1000:]:
            await ledger.defer(held.conn, order)
        after = used()
        assert after[0] - before[0] < 1000, "more blocks of memory"
        assert after[1] - before[1] < 8 * 2**20, "more bytes of memory"
        [(prepared,)] = await done(held.execute("SELECT count(*) FROM pg_prepared_statements"))
        assert prepared < 10
        await done(held.execute(f"INSERT INTO orders SELECT generate_series(1, {JOBS})"))
        await ledger.commit(held, *orders)

    run(kind, dsn, body)
    assert audit("one connection", ledger).committed == JOBS


def used() -> tuple[int, int]:
    """Python's memory in blocks, and the process's in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return sys.getallocatedblocks(), pages * resource.getpagesize()
