"""What becomes of one run of a job for which `complete` was called: decided from its row, without asking anybody."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from procrastinate.jobs import Job, Status


class Fate(Enum):
    """What the job's row says of the run."""

    COMPLETED = "the task's transaction was committed"
    RUNNING = "what complete() did was rolled back"
    OPEN = "the task's transaction is still open"
    TAKEN = "the job is another run's, or was ended or deleted by somebody"

    @classmethod
    def of(cls, row: Mapping[str, Any], job: Job) -> Fate:
        """Read *row* as of the run that *job* was fetched for."""
        if row["worker_id"] in (job.worker_id, None):
            if row["status"] == "doing" and row["attempts"] == job.attempts:
                return cls.RUNNING
            if row["status"] == "succeeded" and row["attempts"] == job.attempts + 1:
                return cls.COMPLETED
        return cls.TAKEN


class Ending(Enum):
    """What the worker logs as the job's outcome, and stores."""

    AS_THE_TASK_ENDED = "as without complete()"
    SUCCESS = "a success, and nothing is retried"
    NOT_COMPLETED = "a failure of its own, retried as the task says"
    NOBODYS = "nothing"
    LATER = "nothing yet: it looks again"


class Message(NamedTuple):
    """A record in the log, besides the job's outcome."""

    level: int
    action: str
    text: str


_RAISED = "had been completed and committed when its task raised an exception: it stays succeeded"
_MESSAGES = {
    Fate.OPEN: Message(
        logging.ERROR,
        "transaction_left_open",
        "has ended with the transaction open in which it was completed: it succeeds if that is committed. "
        "Commit or roll back before the task returns",
    ),
    Fate.TAKEN: Message(
        logging.WARNING,
        "job_taken",
        "is no longer this run's: it was retried, ended or deleted meanwhile, and is left as it is",
    ),
}


def decide(fate: Fate, status: Status) -> tuple[Ending, Message | None]:
    """Decide how a run ends.

    :param status: how the task has ended, as the worker sees it.
    """
    if fate is Fate.OPEN:
        return Ending.LATER, _MESSAGES[fate]
    if fate is Fate.TAKEN:
        return Ending.NOBODYS, _MESSAGES[fate]
    if fate is Fate.RUNNING:
        returned = status is Status.SUCCEEDED
        return Ending.NOT_COMPLETED if returned else Ending.AS_THE_TASK_ENDED, None
    if status is Status.SUCCEEDED:
        return Ending.SUCCESS, None
    level = logging.ERROR if status is Status.FAILED else logging.INFO
    return Ending.SUCCESS, Message(level, "error_after_completion", _RAISED)
