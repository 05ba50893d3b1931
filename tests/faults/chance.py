"""How long a run of the fault tests is, and what it leaves to chance."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator

LONG = os.environ.get("EXTCONN_FAULTS") == "long"
"""Whether this is the long form, or the short one that runs with all the other tests."""

SEED = os.environ.setdefault("EXTCONN_SEED", str(random.SystemRandom().randrange(10**6)))
"""Repeats a run, as far as the clock does. The workers of pytest-xdist inherit it."""


@contextlib.contextmanager
def at_a_random_moment(
    rng: random.Random, within: float, strike: Callable[[], object]
) -> Iterator[None]:
    """Call *strike* in another thread, some time within so many seconds, unless the block has ended by then.

    In one block of four it never comes, so that something is left to tell how long a block takes.
    """
    if rng.random() < 0.25:
        yield
        return
    timer = threading.Timer(rng.uniform(0, within), strike)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
