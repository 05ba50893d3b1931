"""Tasks of each outcome, for tests of what runs jobs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import procrastinate
from procrastinate.exceptions import JobAborted
from procrastinate.retry import BaseRetryStrategy, RetryDecision, RetryStrategy

NOW = datetime.datetime.now(datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


class Moves(BaseRetryStrategy):
    """Retries once, elsewhere."""

    def get_retry_decision(self, *, exception: BaseException, job: Any) -> RetryDecision | None:
        return None if job.attempts else RetryDecision(priority=9, queue="moved", lock="moved")


def fails_before(attempts: int) -> Callable[[Any], None]:
    """A task that succeeds at that attempt."""

    def body(context: Any) -> None:
        if context.job.attempts < attempts:
            raise RuntimeError(f"attempt {context.job.attempts}")

    return body


def aborts(context: Any) -> None:
    """A task that aborts itself."""
    raise JobAborted


BODIES: dict[str, tuple[Callable[[Any], None], Any]] = {
    "plain": (fails_before(0), None),
    "again": (fails_before(2), RetryStrategy(max_attempts=5)),
    "moves": (fails_before(1), Moves()),
    "later": (fails_before(9), RetryStrategy(wait=3600)),
    "gives_up": (fails_before(9), 1),
    "fails": (fails_before(9), None),
    "aborts": (aborts, 3),
    "splits": (fails_before(0), None),
}


def add_tasks(app: procrastinate.App, log: list[Any], *, is_async: bool) -> None:
    """Define a task for each body, which logs its run."""

    def start(context: Any, n: int) -> Any:
        log.append((context.task.name, n, context.job.attempts, context.job.status))
        BODIES[context.task.name][0](context)
        return app.tasks["plain"].configure(priority=5, lock="b" if n % 2 else None)

    def sync(context: Any, n: int) -> int:
        deferrer = start(context, n)
        if context.task.name == "splits":
            deferrer.defer(n=100)
            deferrer.defer(n=101)
        return n

    async def async_(context: Any, n: int) -> int:
        deferrer = start(context, n)
        if context.task.name == "splits":
            await deferrer.defer_async(n=100)
            await deferrer.defer_async(n=101)
        return n

    for name, (_, retry) in BODIES.items():
        app.task(name=name, pass_context=True, retry=retry)(async_ if is_async else sync)
