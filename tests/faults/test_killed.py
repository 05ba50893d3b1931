"""The backend is killed, or the whole server, at a random moment of a transaction."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable
from importlib.metadata import version

import psycopg
import pytest
from faults.chance import at_a_random_moment
from faults.ledger import Ledger

from procrastinate_extconn.kinds import Held, Kind, done, run
from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("installed"),
    # A driver whose server has gone may leave its socket to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*BufferedRWPair:pytest.PytestUnraisableExceptionWarning"),
]


def test_backend_killed(
    kind: Kind, dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Whenever `pg_terminate_backend` comes, the row and its job are both there or neither is."""
    if kind.id == "asyncpg-pool" and version("asyncpg").startswith("0.29."):
        pytest.skip("the pool of asyncpg 0.29 may wait for ever for a killed connection")
    ledger = Ledger(kind, dsn, rng)
    with psycopg.connect(dsn, autocommit=True) as killer:

        async def body(held: Held) -> None:
            [(pid,)] = await done(held.execute("SELECT pg_backend_pid()"))
            kill = lambda: killer.execute("SELECT pg_terminate_backend(%s)", [pid])  # noqa: E731
            with at_a_random_moment(rng, 1.2 * ledger.typical, kill):
                await ledger.transact(held)

        run_all(ledger, sized(5, 1000), body)
    audit("backend killed", ledger)


def test_server_killed(
    kind: Kind,
    own_dsn: str,
    server: TemporaryServer,
    rng: random.Random,
    audit: Callable,
    sized: Callable,
) -> None:
    """Whenever the server dies of SIGKILL, the row and its job are both there afterwards or neither is."""
    ledger = Ledger(kind, own_dsn, rng)

    def kill() -> None:
        server.kill()
        server.start()

    async def body(held: Held) -> None:
        with at_a_random_moment(rng, 1.2 * ledger.typical, kill):
            await ledger.transact(held)

    run_all(ledger, sized(3, 100), body)
    audit("server killed", ledger)


def run_all(ledger: Ledger, transactions: int, body: Callable) -> None:
    """Run *body* on one new connection after the other, also after errors."""
    while ledger.transactions < transactions:
        with contextlib.suppress(Exception):
            run(ledger.kind, ledger.dsn, body)
    gc.collect()
