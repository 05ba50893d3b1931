"""A sync call and an async connection, or the reverse, never meet; nothing is left un-awaited."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress

from procrastinate.manager import JobManager

from ....connector import ExternalConnector
from ....exceptions import SyncAsyncMismatch
from ..caller import Caller, new_job
from ..clause import Broken, clause, must
from ..wiretap import asked


class MismatchClauses:
    """Sync and async calls."""

    @clause(tapped=True)
    async def test_sync_async_mismatch(self, caller: Caller) -> None:
        """A sync call on an async connection, or the reverse, is `SyncAsyncMismatch`, and nothing is sent."""
        assert caller.wiretap is not None
        caller.wiretap.take()
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
                raise Broken("the call went through")
        must(not asked(caller.wiretap.take()), "something was sent to the server")

    @clause()
    async def test_nothing_unawaited(self, caller: Caller) -> None:
        """A call leaves nothing un-awaited behind, whether it works or fails."""
        with _nothing_unawaited():
            await caller.defer()
            with suppress(Exception):
                await caller.query("SELECT 1 / %(zero)s::bigint AS quotient", zero=0)


@contextmanager
def _nothing_unawaited() -> Generator[None]:
    gc.collect()  # what others left is not this call's
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    left = [str(warning.message) for warning in caught if "never awaited" in str(warning.message)]
    must(not left, "; ".join(left))
