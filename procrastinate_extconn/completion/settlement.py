"""What a worker makes of a job for which `complete` was called: it looks at the job's row, and believes that.

Such a run of a job succeeds with its task's transaction or not at all. Procrastinate's own worker knows nothing of
that transaction, so four of its methods are wrapped, from the first `complete` in this process until `uninstall`.
All other jobs go straight through.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from procrastinate.exceptions import ConnectorException, JobRetry
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.worker import Worker

from .. import replacing
from ..exceptions import ExternalConnectionError
from ..queries import DELETE_COMPLETED_JOB, JOB_ROW, UNLOCKED_JOB_ROW
from ..sync_async import wraps
from .decision import Ending, Fate, Message, decide

logger: logging.Logger = logging.getLogger(__name__)

_PATIENCE = (0, 0.01, 0.03, 0.1)
"""Seconds before each look at a locked row: a server needs a moment to roll back for a connection that was closed."""

_NOT_NOW = Message(logging.WARNING, "settle_job_error", "cannot be settled now")

_KEY = "_procrastinate_extconn_ending"


def expect(job: Job) -> None:
    """Let the worker that runs *job* end it by its row.

    :raises ExternalConnectionError: if this version of Procrastinate has another worker than the one known here.
    """
    for (cls, name), handle in _HANDLERS.items():
        if not replacing.wrap(cls, name, functools.partial(_wrap, handle=handle), __name__):
            raise ExternalConnectionError(
                f"this version of Procrastinate has no {cls.__name__}.{name}, so its worker would not accept a job "
                "that its task has completed: use a version that procrastinate-extconn is tested with"
            )
    # On the job, so that nothing is left behind: the worker drops it with the job.
    vars(job).setdefault(_KEY, _Ending(job))


def is_expected(job: Job) -> bool:
    """Whether `complete` was called in this run of *job*."""
    return _ending_of(job) is not None


def not_completed(job: Job) -> ExternalConnectionError:
    """The failure of a task that returned although its `complete` was undone."""
    return ExternalConnectionError(
        f"job {job.id} was not completed: its task returned, but what complete() did was rolled back, to a savepoint "
        "or with the whole transaction, or never committed. Call complete() last, outside any savepoint, and commit"
    )


class _Call:
    """A call that was meant for Procrastinate, to be passed on, maybe with other arguments."""

    def __init__(self, function: Callable[..., Any], bound: inspect.BoundArguments) -> None:
        self._function = function
        self._signature = bound.signature
        self.arguments = bound.arguments

    def __call__(self, **changes: Any) -> Any:
        arguments = OrderedDict({**self.arguments, **changes})
        bound = inspect.BoundArguments(self._signature, arguments)
        return self._function(*bound.args, **bound.kwargs)


class _Ending:
    """The end of one run of a job for which `complete` was called."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.fate = Fate.RUNNING
        self.log_outcome: _Call | None = None
        self._persist: _Call
        self._last_look = asyncio.Event()
        self._follow_up: asyncio.Task[bool]

    async def persist(self, persist: _Call) -> None:
        """Settle the job; where its transaction is open, go on looking but leave the worker to its other jobs."""
        self._persist = persist
        for pause in _PATIENCE:
            await asyncio.sleep(pause)
            if await self._settle():
                return
        self._log(decide(Fate.OPEN, persist.arguments["status"])[1])
        if self.log_outcome is not None:
            # Its traceback may be all that keeps the connection from being collected, and so rolled back.
            self.log_outcome.arguments["exc_info"] = False
        _open.setdefault(self._worker.app.job_manager, set()).add(self)
        self._follow_up = asyncio.create_task(self._settle_later(), name=f"settle job {self._name}")

    async def last_look(self) -> bool:
        """Look once more; whether the job is settled."""
        self._last_look.set()
        return await self._follow_up

    async def _settle_later(self) -> bool:
        last = settled = False
        while not (last or settled):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._last_look.wait(), self._worker.fetch_job_polling_interval
                )
            last = self._last_look.is_set()
            try:
                settled = await self._settle()
            except ConnectorException:
                self._log(_NOT_NOW, exc_info=True)
        _open[self._worker.app.job_manager].discard(self)
        return settled

    async def _settle(self) -> bool:
        try:
            self.fate = await self._look()
        except ConnectorException:
            self._outcome()
            raise
        if self.fate is Fate.OPEN:
            return False
        await self._end()
        vars(self.job).pop(_KEY, None)
        return True

    async def _look(self) -> Fate:
        connector = self._worker.app.job_manager.connector
        rows = await connector.execute_query_all_async(UNLOCKED_JOB_ROW, job_id=self.job.id)
        if rows:
            return Fate.of(rows[0], self.job)
        locked = await connector.execute_query_all_async(JOB_ROW, job_id=self.job.id)
        return Fate.OPEN if locked else Fate.TAKEN

    async def _end(self) -> None:
        ending, message = decide(self.fate, self._persist.arguments["status"])
        if ending is Ending.NOBODYS:
            self._log(message)
            self.log_outcome = None
            await self._persist(retry_decision=None)
        elif ending is Ending.SUCCESS:
            exception = self._exception
            self._outcome(status=Status.SUCCEEDED, job_retry=None, exc_info=False)
            self._log(message, exc_info=exception)
            await self._persist(status=Status.SUCCEEDED, retry_decision=None)
        elif ending is Ending.NOT_COMPLETED:
            await self._fail()
        else:
            self._outcome()
            await self._persist()

    async def _fail(self) -> None:
        error = not_completed(self.job)
        task = self._worker.app.tasks[self.job.task_name]
        job_retry: JobRetry | None = task.get_retry_exception(exception=error, job=self.job)
        self._outcome(status=Status.FAILED, job_retry=job_retry, exc_info=error)
        await self._persist(
            status=Status.FAILED, retry_decision=job_retry.retry_decision if job_retry else None
        )

    @property
    def _worker(self) -> Any:  # a Worker, whose tasks Procrastinate types in part
        return self._persist.arguments["self"]

    @property
    def _exception(self) -> BaseException | None:
        exc_info = self.log_outcome.arguments.get("exc_info") if self.log_outcome else None
        return exc_info if isinstance(exc_info, BaseException) else None

    @property
    def _name(self) -> str:
        return f"{self.job.task_name}[{self.job.id}]"

    def _outcome(self, **changes: Any) -> None:
        """Let Procrastinate log how the job ended, once."""
        log_outcome, self.log_outcome = self.log_outcome, None
        if log_outcome is not None:
            log_outcome(**changes)

    def _log(self, message: Message | None, *, exc_info: Any = None) -> None:
        if message is None:
            return
        extra = {
            "action": message.action,
            "job_id": self.job.id,
            "task_name": self.job.task_name,
            "worker_id": self.job.worker_id,
        }
        exc_info = exc_info or self._exception
        logger.log(
            message.level, "Job %s %s", self._name, message.text, extra=extra, exc_info=exc_info
        )


_open: WeakKeyDictionary[JobManager, set[_Ending]] = WeakKeyDictionary()
"""The jobs whose transaction was open when their task returned, until they are settled."""


def _ending_of(job: object) -> _Ending | None:
    return vars(job).get(_KEY) if isinstance(job, Job) else None


# -- Procrastinate's methods ------------------------------------------------------------------------------------------


def _log_job_outcome(call: _Call) -> None:
    ending = _ending_of(getattr(call.arguments.get("context"), "job", None))
    if ending is None:
        call()
    else:
        ending.log_outcome = call  # The row has the last word, and has not been asked yet.


async def _persist_job_status(call: _Call) -> None:
    ending = _ending_of(call.arguments.get("job"))
    await (call() if ending is None else ending.persist(call))


async def _finish_job(call: _Call) -> None:
    ending = _ending_of(call.arguments.get("job"))
    if ending is None or ending.fate is Fate.RUNNING:
        await call()
    elif ending.fate is Fate.COMPLETED and call.arguments["delete_job"]:
        manager: JobManager = call.arguments["self"]
        await manager.connector.execute_query_async(DELETE_COMPLETED_JOB, job_id=ending.job.id)


async def _unregister_worker(call: _Call) -> None:
    worker_id = call.arguments["worker_id"]
    endings = [
        ending
        for ending in _open.get(call.arguments["self"], ())
        if ending.job.worker_id == worker_id
    ]
    if all(await asyncio.gather(*(ending.last_look() for ending in endings))):
        await call()
    else:
        # Deleting the worker's row means an update of the job's, which would wait for the open transaction.
        logger.warning(
            "Worker %s stays registered, as a transaction of one of its tasks is still open. Its heartbeat has "
            "ended, so once that transaction is rolled back the job is found among the stalled jobs",
            worker_id,
            extra={"action": "worker_left_registered", "worker_id": worker_id},
        )


_HANDLERS: dict[tuple[type, str], Callable[[_Call], Any]] = {
    (Worker, "_log_job_outcome"): _log_job_outcome,
    (Worker, "_persist_job_status"): _persist_job_status,
    (JobManager, "finish_job"): _finish_job,
    (JobManager, "unregister_worker"): _unregister_worker,
}
"""(class, method) -> what is done with a call of it."""


def _wrap(original: Callable[..., Any], handle: Callable[[_Call], Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def method(*args: Any, **kwargs: Any) -> Any:
        return handle(_Call(original, signature.bind(*args, **kwargs)))

    return wraps(original, method)
