"""What becomes of a run is decided from the job's row and the task's end alone."""

from __future__ import annotations

from typing import Any

import pytest
from procrastinate.jobs import Job, Status

from procrastinate_extconn.completion.decision import Ending, Fate, decide

DONE, FAILED, ABORTED = Status.SUCCEEDED, Status.FAILED, Status.ABORTED


@pytest.mark.parametrize(
    ("row", "fate"),
    [
        (("doing", 3, 7), Fate.RUNNING),
        (("doing", 3, None), Fate.RUNNING),  # a stalled worker is cut from its jobs
        (("succeeded", 4, 7), Fate.COMPLETED),
        (("succeeded", 4, None), Fate.COMPLETED),
        (("doing", 4, 7), Fate.TAKEN),  # retried, and fetched by this worker again
        (("doing", 3, 8), Fate.TAKEN),
        (("todo", 4, 7), Fate.TAKEN),
        (("succeeded", 5, 7), Fate.TAKEN),
        (("succeeded", 4, 8), Fate.TAKEN),
        (("failed", 4, 7), Fate.TAKEN),
        (("cancelled", 3, 7), Fate.TAKEN),
    ],
)
def test_a_row_tells_the_fate(row: tuple[str, int, Any], fate: Fate) -> None:
    """Status, attempts and worker say whether the job is still this run's, and whether it was completed."""
    job = Job(
        id=1, queue="q", lock=None, queueing_lock=None, task_name="t", attempts=3, worker_id=7
    )
    assert Fate.of(dict(zip(("status", "attempts", "worker_id"), row, strict=True)), job) is fate


@pytest.mark.parametrize(
    ("fate", "status", "ending", "action"),
    [
        (Fate.COMPLETED, DONE, Ending.SUCCESS, None),
        (Fate.COMPLETED, FAILED, Ending.SUCCESS, "error_after_completion"),
        (Fate.COMPLETED, ABORTED, Ending.SUCCESS, "error_after_completion"),
        (Fate.RUNNING, DONE, Ending.NOT_COMPLETED, None),
        (Fate.RUNNING, FAILED, Ending.AS_THE_TASK_ENDED, None),
        (Fate.RUNNING, ABORTED, Ending.AS_THE_TASK_ENDED, None),
        (Fate.TAKEN, DONE, Ending.NOBODYS, "job_taken"),
        (Fate.TAKEN, FAILED, Ending.NOBODYS, "job_taken"),
        (Fate.TAKEN, ABORTED, Ending.NOBODYS, "job_taken"),
        (Fate.OPEN, DONE, Ending.LATER, "transaction_left_open"),
        (Fate.OPEN, FAILED, Ending.LATER, "transaction_left_open"),
        (Fate.OPEN, ABORTED, Ending.LATER, "transaction_left_open"),
    ],
)
def test_fate_and_status_decide(
    fate: Fate, status: Status, ending: Ending, action: str | None
) -> None:
    """Each fate of the transaction, with each end of the task, has one ending and at most one message."""
    decided, message = decide(fate, status)
    assert decided is ending
    assert (message and message.action) == action
