"""A worker in a process of its own, which kills itself at a point of its task."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

import procrastinate


class MortalWorker:
    """A worker whose task says to which point it has come.

    :param dies_at: the point at which it kills itself; None leaves it to somebody else to kill it.
    :param dies_in: in the how-manieth job that comes to that point.
    :param started: gets the id of each job that is run.
    """

    app: procrastinate.App

    def __init__(self, dies_at: str | None, dies_in: int, started: Connection | None) -> None:
        self._dies_at = dies_at
        self._left = dies_in
        self._started = started

    def begin(self, context: procrastinate.JobContext) -> None:
        """Say that a job runs."""
        if self._started:
            self._started.send(context.job.id)

    def come_to(self, point: str) -> None:
        """Say that its task has come so far."""
        if point == self._dies_at:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    async def work(self, *, wait: bool) -> None:
        """Work, with a heart that beats fast where it is to be missed.

        Before Python 3.12 a worker may wait for ever, at its end, for a heartbeat that was cancelled as it came.
        """
        await self.app.run_worker_async(
            concurrency=3,
            wait=wait,
            listen_notify=False,
            install_signal_handlers=False,
            fetch_job_polling_interval=0.02,
            update_heartbeat_interval=0.1 if wait else 10,
            stalled_worker_timeout=1,
        )
