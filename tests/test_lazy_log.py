"""What Procrastinate logs of deferred jobs is made if somebody reads it, and only then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.jobs import Job, JobDeferrer
from procrastinate.testing import InMemoryConnector

import procrastinate_extconn as extconn

LOGGER = "procrastinate.jobs"
pytestmark = pytest.mark.usefixtures("layer_off")


@pytest.fixture
def dicts(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Every job that became a dict for the log."""
    made: list[Job] = []
    log_context = Job.log_context

    def counting(self: Job) -> Any:
        made.append(self)
        return log_context(self)

    monkeypatch.setattr(Job, "log_context", counting)
    return made


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in a transaction that is rolled back."""
    with psycopg.connect(dsn) as conn:
        yield conn
        conn.rollback()


def defer_three(task: Any, conn: object) -> None:
    """One job, and two in a batch."""
    configured = task.configure(connection=conn, lock="L", priority=3)
    configured.defer(number=1, nested={"a": [1]})
    configured.batch_defer({"number": 2}, {"number": 3})


def essence(records: list[logging.LogRecord]) -> list[dict[str, Any]]:
    """What *records* say, but for what differs from one run to the next: times, and ids from a sequence."""
    kept = []
    for record in records:
        data = {
            key: value
            for key, value in vars(record).items()
            if key not in ("created", "msecs", "relativeCreated", "taskName")
        }
        data["jobs"] = [
            {key: job[key] for key in job if key not in ("id", "call_string")}
            | {"has_id": job["id"] is not None}
            for job in data["jobs"]
        ]
        kept.append(data)
    return kept


def test_records_are_equal(task: Any, conn: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where the logger is enabled, the records are those of Procrastinate alone, key for key."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        defer_three(task, conn)
        ours = essence([record for record in caplog.records if record.name == LOGGER])
        caplog.clear()
        extconn.uninstall()
        defer_three(task, conn)
    natives = essence([record for record in caplog.records if record.name == LOGGER])
    assert len(ours) == 4
    assert ours == natives


@pytest.mark.parametrize(
    ("level", "expected"), [(logging.WARNING, 0), (logging.INFO, 3), (logging.DEBUG, 6)]
)
def test_each_level_has_its_records(
    task: Any,
    conn: Any,
    caplog: pytest.LogCaptureFixture,
    dicts: list[Job],
    level: int,
    expected: int,
) -> None:
    """Jobs become dicts for the records that are read, and for no other."""
    with caplog.at_level(level, LOGGER):
        defer_three(task, conn)
    assert len(dicts) == expected
    assert sum(len(getattr(record, "jobs", ())) for record in caplog.records) == expected


def test_without_a_connection_too(app: Any, task: Any, dicts: list[Job]) -> None:
    """A call on the app's own connector makes no dicts either."""
    with app.open():
        task.defer(number=1)
    assert dicts == []


@pytest.mark.parametrize("turn_off", [extconn.uninstall, lambda: None], ids=["uninstall", "never"])
def test_without_the_layer_nothing_changes(
    dsn: str, conn: Any, dicts: list[Job], turn_off: Callable[[], None]
) -> None:
    """An app that is not patched, or no more, does as Procrastinate does."""
    if turn_off is extconn.uninstall:
        extconn.install()
    turn_off()
    patched = extconn.patch(procrastinate.App(connector=procrastinate.PsycopgConnector()))
    app = procrastinate.App(connector=InMemoryConnector())
    app.configure_task("anything").defer()
    assert len(dicts) == 2
    patched.configure_task("anything", connection=conn).defer()
    assert len(dicts) == 2
    extconn.unpatch(patched)
    assert vars(JobDeferrer)["_log_after_defer_jobs"].__qualname__.startswith("JobDeferrer")
    assert not hasattr(JobDeferrer._log_after_defer_jobs, "__wrapped__")


def _does_more(self: Any, jobs: Any) -> None:
    logger.info("Deferred", extra={"jobs": [job.log_context() for job in jobs]})
    seen.append(jobs)


def _other_arguments(self: Any, jobs: Any, connection: Any = None) -> None:
    logger.info("Deferred")


def _other_level(self: Any, jobs: Any) -> None:
    logger.log(logging.INFO, "Deferred")


logger = logging.getLogger(LOGGER)
seen: list[Any] = []


@pytest.mark.parametrize("method", [_does_more, _other_arguments, _other_level, None])
def test_a_method_that_is_otherwise_stays(monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    """A method of Procrastinate's that does something else, in a version to come, is left alone."""
    if method is None:
        monkeypatch.delattr(JobDeferrer, "_log_after_defer_jobs")
    else:
        monkeypatch.setattr(JobDeferrer, "_log_after_defer_jobs", method)
    extconn.install()
    try:
        assert vars(JobDeferrer).get("_log_after_defer_jobs") is method
    finally:
        extconn.uninstall()
