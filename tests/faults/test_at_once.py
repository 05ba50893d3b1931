"""Many transactions are open at once, each on a connection of its own."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from faults.ledger import Ledger

from procrastinate_extconn.kinds import Held, Kind, run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

TASKS = 64
THREADS = 32


def test_tasks(
    async_kind: Kind, own_dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Tasks that defer at the same time stay out of each other's transactions."""
    if async_kind.plugin == "tortoise" and find_spec("tortoise.context") is None:
        pytest.skip("this Tortoise is opened once for all tasks")
    ledger = Ledger(async_kind, own_dsn, rng)

    async def all_at_once() -> None:
        missing = TASKS
        everybody = asyncio.Event()

        async def one() -> None:
            nonlocal missing
            async with async_kind.open(own_dsn) as held:
                missing -= 1
                if not missing:
                    everybody.set()
                await everybody.wait()
                await ledger.transact(held)

        await asyncio.gather(*(one() for _ in range(TASKS)))

    for _ in range(sized(1, 10)):
        asyncio.run(all_at_once())
    assert audit("64 tasks", ledger).hit == 0


def test_threads(
    sync_kind: Kind, own_dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Threads that defer at the same time stay out of each other's transactions."""
    ledger = Ledger(sync_kind, own_dsn, rng)
    everybody = threading.Barrier(THREADS)

    async def body(held: Held) -> None:
        everybody.wait()
        await ledger.transact(held)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(sized(1, 10)):
            for ended in [pool.submit(run, sync_kind, own_dsn, body) for _ in range(THREADS)]:
                ended.result()
    assert audit("32 threads", ledger).hit == 0
