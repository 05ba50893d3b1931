"""A sync call and an async connection, or the reverse, never meet; nothing is left un-awaited."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress

from procrastinate.manager import JobManager

from ...connector import ExternalConnector
from ...exceptions import SyncAsyncMismatch
from .caller import Caller, new_job
from .clause import clause


class ColourClauses:
    """Sync and async."""

    @clause
    async def test_wrong_colour(self, caller: Caller) -> None:
        """A call of the other colour is `SyncAsyncMismatch`, and nothing is sent."""
        manager = JobManager(ExternalConnector(caller.conn))
        with _nothing_unawaited():
            try:
                if caller.kind.is_async:
                    manager.defer_job(new_job())
                else:
                    await manager.defer_job_async(new_job())
            except SyncAsyncMismatch:
                pass
            else:
                raise AssertionError("the call went through")
        assert await caller.value("SELECT count(*) FROM procrastinate_jobs") == 0, (
            "the job was sent"
        )

    @clause
    async def test_nothing_unawaited(self, caller: Caller) -> None:
        """A call of the right colour leaves nothing un-awaited behind, whether it works or fails."""
        with _nothing_unawaited():
            await caller.defer()
            with suppress(Exception):
                await caller.query("SELECT 1 / %(zero)s::bigint AS quotient", zero=0)


@contextmanager
def _nothing_unawaited() -> Generator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    left = [str(warning.message) for warning in caught if "never awaited" in str(warning.message)]
    assert not left, "; ".join(left)
