"""What is deferred comes back equal, through every kind of connection."""

from __future__ import annotations

import datetime
import decimal
import functools
import inspect
import itertools
import json
import os
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import procrastinate
import psycopg
import pytest
from holding import External, Watch
from hypothesis import strategies as st
from procrastinate.manager import JobManager
from procrastinate.types import JobToDefer

from procrastinate_extconn import ExternalConnector

TEXTS = [
    'it\'s "quoted" `so`',
    "C:\\new\\table \\\\ \\u0041 \\x41 \\",
    "100%s %(x)s %(jobs)s %% %d %",
    ":name ::text a:b \\:x",
    "$1 $2 $$ $tag$",
    "{} {0} {{x}} {'a': 1} [1] (a,b)",
    "a,b;\n-- c\r\n\t/* d */",
    "žluťoučký 漢字 🐘 \u2028 \x7f",
    "",
    " NULL null \\N ",
]
PAYLOAD = {
    "texts": TEXTS,
    "keys": {text: index for index, text in enumerate(TEXTS)},
    "numbers": [0, -1, 2**53 + 1, 2**63, -(2**70), 1.5, -0.1, 1e-7],
    "others": [None, True, False, [], {}, [[{"a": []}]]],
}
CAN_CANCEL = "connection" in inspect.signature(JobManager.cancel_job_by_id).parameters
SEED = int(os.environ.get("EXTCONN_TEST_SEED") or random.SystemRandom().randrange(2**32))

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test looks at its own jobs."""
    return new_database()


def test_arguments_come_back_equal(external: External, task: Any, watch: Watch) -> None:
    """A job's arguments are the same after the commit, with everything that JSON can say."""
    job_id = external.defer(task, **PAYLOAD)
    external.commit()
    assert watch.job(job_id)["args"] == PAYLOAD


def test_arguments_are_read_back_on_the_connection(external: External, task: Any) -> None:
    """A job's arguments are decoded where the connection itself reads them."""
    job_id = external.defer(task, **PAYLOAD)
    manager = JobManager(ExternalConnector(external.conn))
    (job,) = external.call(manager, "list_jobs", id=job_id)
    assert job.task_kwargs == PAYLOAD


def test_names_and_locks_come_back_equal(
    external: External, app: procrastinate.App, watch: Watch
) -> None:
    """Queue, task, locks and priority are the same after the commit, with any characters in them."""
    text = "".join(TEXTS)
    expected = {
        "task_name": text[:128],
        "queue_name": "%s:a$1{}'\"\\é",  # part of a NOTIFY channel's name, which is short
        "lock": text,
        "queueing_lock": f"{text}{next(_numbers)}",
        "priority": -(2**31),
    }
    job_id = external.defer(
        app.configure_task(
            expected["task_name"],
            queue=expected["queue_name"],
            lock=expected["lock"],
            queueing_lock=expected["queueing_lock"],
            priority=expected["priority"],
        )
    )
    external.commit()
    job = watch.job(job_id)
    assert {name: job[name] for name in expected} == expected


def test_schedule_at_keeps_its_instant(external: External, task: Any, watch: Watch) -> None:
    """`schedule_at` is the same instant after the commit, to the microsecond, from any time zone."""
    india = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    instant = datetime.datetime(2031, 3, 1, 4, 59, 59, 123457, tzinfo=india)
    one = external.defer(task.configure(schedule_at=instant))
    first, second = external.batch_defer(task.configure(schedule_at=instant), {"n": 1}, {"n": 2})
    external.commit()
    assert [watch.job(job_id)["scheduled_at"] for job_id in (one, first, second)] == [instant] * 3


def test_batch_ids_are_in_order(external: External, task: Any, watch: Watch) -> None:
    """`batch_defer` returns the ids in the order of its arguments."""
    ids = external.batch_defer(task, *({"n": n} for n in range(50)))
    external.commit()
    assert [watch.job(job_id)["args"]["n"] for job_id in ids] == list(range(50))


def test_an_empty_batch_is_nothing(external: External, task: Any) -> None:
    """`batch_defer` without jobs returns no ids."""
    assert external.batch_defer(task) == []


@pytest.mark.skipif(not CAN_CANCEL, reason="Procrastinate cancels on a connection since 3.10")
def test_cancelling_is_part_of_the_transaction(
    external: External, app: procrastinate.App, task: Any, watch: Watch
) -> None:
    """A job that is cancelled on the connection is so for everybody else from the commit on."""
    job_id = external.defer(task)
    manager, conn = app.job_manager, external.conn
    assert external.call(manager, "get_job_status", job_id, connection=conn).value == "todo"
    assert external.call(manager, "cancel_job_by_id", job_id, connection=conn)
    assert external.call(manager, "get_job_status", job_id, connection=conn).value == "cancelled"
    assert watch.job(job_id) is None
    external.commit()
    assert watch.job(job_id)["status"] == "cancelled"


@pytest.mark.skipif(not CAN_CANCEL, reason="Procrastinate cancels on a connection since 3.10")
def test_cancelling_what_is_not_there_is_false(external: External, app: procrastinate.App) -> None:
    """A job that does not exist is not cancelled."""
    conn = external.conn
    assert not external.call(app.job_manager, "cancel_job_by_id", 2**40, connection=conn)


# -- the wire, against what the server reads --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def connector(dsn: str) -> Iterator[ExternalConnector]:
    """A connector on a psycopg connection that stays open for the module."""
    with psycopg.connect(dsn) as conn:
        yield ExternalConnector(conn)


# PostgreSQL stores no NUL, and lone surrogates are no text at all.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e15, 1e15) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=5,
)
instants = st.datetimes(
    min_value=datetime.datetime(2, 1, 1),  # noqa: DTZ001
    max_value=datetime.datetime(9998, 12, 31),  # noqa: DTZ001
    timezones=st.builds(
        lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes)),
        st.integers(-15 * 60, 15 * 60),
    ),
)
jobs_to_defer = st.builds(
    JobToDefer,
    queue_name=texts,
    task_name=texts,
    priority=st.integers(-(2**31), 2**31 - 1),
    lock=st.none() | texts,
    queueing_lock=st.none() | texts,
    args=st.dictionaries(texts, documents, max_size=3),
    scheduled_at=st.none() | instants,
)


@hypothesis.seed(SEED)
@hypothesis.settings(deadline=None, print_blob=True, database=None)
@hypothesis.given(jobs=st.lists(jobs_to_defer, max_size=3))
def test_the_server_reads_the_jobs_that_were_written(
    connector: ExternalConnector, jobs: list[JobToDefer]
) -> None:
    """The job records that the server makes of our text are those that we made it of."""
    hypothesis.note(f"EXTCONN_TEST_SEED={SEED}")
    rows = connector.execute_query_all(
        "SELECT * FROM unnest(%(jobs)s::procrastinate_job_to_defer_v1[])", jobs=jobs
    )
    assert [JobToDefer(**row) for row in rows] == jobs


def test_a_lock_may_be_more_than_text(external: External, task: Any, watch: Watch) -> None:
    """A lock may be a UUID, and is stored as Procrastinate's own connectors store it."""
    lock: Any = uuid.uuid4()
    job_id = external.defer(task.configure(lock=lock))
    external.commit()
    assert watch.job(job_id)["lock"] == lock.hex


def test_the_connectors_own_json_is_used(
    external: External, installed: None, dsn: str, watch: Watch
) -> None:
    """Arguments are written by the `json_dumps` of the app's connector."""
    connector = procrastinate.PsycopgConnector(
        conninfo=dsn, json_dumps=functools.partial(json.dumps, default=str)
    )
    deferrer = procrastinate.App(connector=connector).configure_task("process_order")
    job_id = external.defer(deferrer, price=decimal.Decimal("0.10"))
    external.commit()
    assert watch.job(job_id)["args"] == {"price": "0.10"}


def test_json_loads_has_its_say(external: External, task: Any) -> None:
    """What is read on the connection is what `json_loads` makes of it, also where the driver decodes JSON itself."""
    job_id = external.defer(task, price=0.1)
    connector = ExternalConnector(
        external.conn, json_loads=functools.partial(json.loads, parse_float=decimal.Decimal)
    )
    (job,) = external.call(JobManager(connector), "list_jobs", id=job_id)
    assert job.task_kwargs == {"price": decimal.Decimal("0.1")}


def test_what_json_cannot_say_is_the_persons_error(external: External, task: Any) -> None:
    """What `json_dumps` raises comes out as it is, and the transaction goes on."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        external.defer(task, lost=object())
    assert external.defer(task, found=True)
