"""What Procrastinate promises of the connections that it takes by itself holds with the layer on, as with it off."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import procrastinate
import pytest
from holding import External, Watch, hold
from procrastinate.connector import BaseConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status
from procrastinate.testing import InMemoryConnector

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import all_kinds, done

needs_one_row = pytest.mark.skipif(
    not hasattr(BaseConnector, "execute_query_one_with_connection"),
    reason="Procrastinate cancels, and reads one row, on a connection since 3.10",
)


class Pair(NamedTuple):
    """A connector of Procrastinate's, and the kind of connection that it takes by itself."""

    module: str
    connector: str
    requires: str
    kind: str
    argument: str
    scheme: str


PAIRS = [
    Pair("procrastinate", "SyncPsycopgConnector", "psycopg", "psycopg", "conninfo", "postgresql"),
    Pair("procrastinate", "PsycopgConnector", "psycopg", "psycopg-async", "conninfo", "postgresql"),
    Pair(
        "procrastinate.contrib.sqlalchemy",
        "SQLAlchemyPsycopg2Connector",
        "sqlalchemy",
        "sqlalchemy-connection-psycopg2",
        "dsn",
        "postgresql+psycopg2",
    ),
]


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test looks at its own jobs."""
    return new_database()


@pytest.fixture(params=["off", "on"])
def installed(request: pytest.FixtureRequest) -> Iterator[None]:
    """The layer is off, so that the promise is seen to be Procrastinate's; then it is on."""
    if request.param == "on":
        extconn.install()
    yield
    extconn.uninstall()


@pytest.fixture(params=PAIRS, ids=lambda pair: pair.connector)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each pair that Procrastinate supports by itself."""
    pytest.importorskip(request.param.requires)
    return request.param


@pytest.fixture
def external(pair: Pair, dsn: str) -> Iterator[External]:
    """The pair's connection."""
    (kind,) = (kind for kind in all_kinds() if kind.id == pair.kind)
    if missing := kind.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with hold(kind, dsn) as external:
        yield external


@pytest.fixture
def app(pair: Pair, installed: None, dsn: str, external: External) -> Iterator[procrastinate.App]:
    """An open app on the pair's connector."""
    cls = getattr(importlib.import_module(pair.module), pair.connector)
    connector = cls(**{pair.argument: dsn.replace("postgresql", pair.scheme, 1)})
    app = procrastinate.App(connector=connector)
    external.call(app, "open")
    yield app
    external.call(app, "close")


def with_connection(external: External, app: procrastinate.App, rows: str) -> Any:
    """What ``execute_query_..._with_connection`` returns for one row."""
    suffix = "_async" if external.kind.is_async else ""
    method = getattr(app.connector, f"execute_query_{rows}{suffix}_with_connection")
    return external.run(lambda: method(external.conn, "SELECT %(arg)s AS col", arg=1))


def test_all_rows_of_a_query(external: External, app: procrastinate.App) -> None:
    """A query on the connection returns its rows as dicts."""
    assert with_connection(external, app, "all") == [{"col": 1}]


@needs_one_row
def test_one_row_of_a_query(external: External, app: procrastinate.App) -> None:
    """A query for one row on the connection returns it as a dict."""
    assert with_connection(external, app, "one") == {"col": 1}


def test_a_job_is_there_after_the_commit(external: External, task: Any, watch: Watch) -> None:
    """A job that was deferred on the connection is there once that commits."""
    job_id = external.defer(task, x=1)
    external.commit()
    assert watch.job(job_id)["args"] == {"x": 1}


def test_a_job_is_gone_after_the_rollback(external: External, task: Any, watch: Watch) -> None:
    """A job that was deferred on the connection is gone once that rolls back."""
    job_id = external.defer(task, x=1)
    external.rollback()
    assert watch.job(job_id) is None


def test_a_batch_is_there_after_the_commit(external: External, task: Any, watch: Watch) -> None:
    """Jobs that were deferred as a batch are there once the connection commits."""
    ids = external.batch_defer(task, {"x": 1}, {"x": 2})
    external.commit()
    assert [watch.job(job_id)["args"] for job_id in ids] == [{"x": 1}, {"x": 2}]


def test_a_batch_is_gone_after_the_rollback(external: External, task: Any, watch: Watch) -> None:
    """Jobs that were deferred as a batch are gone once the connection rolls back."""
    ids = external.batch_defer(task, {"x": 1}, {"x": 2})
    external.rollback()
    assert [watch.job(job_id) for job_id in ids] == [None, None]


@needs_one_row
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_job_is_cancelled_with_the_transaction(
    external: External, app: procrastinate.App, task: Any, end: str
) -> None:
    """A job that was cancelled on the connection is so after the commit, and to do after the rollback."""
    manager = app.job_manager
    job_id = external.call(task, "defer", x=1)
    assert external.call(manager, "cancel_job_by_id", job_id, connection=external.conn) is True
    getattr(external, end)()
    expected = Status.CANCELLED if end == "commit" else Status.TODO
    assert external.call(manager, "get_job_status", job_id) == expected


@needs_one_row
def test_a_jobs_status_is_read_on_the_connection(
    external: External, app: procrastinate.App, task: Any
) -> None:
    """The status of a job is read in the connection's transaction."""
    job_id = external.call(task, "defer", x=1)
    status = external.call(app.job_manager, "get_job_status", job_id, connection=external.conn)
    assert status == Status.TODO


def test_a_job_without_a_connection_goes_its_own_way(
    external: External, task: Any, watch: Watch
) -> None:
    """A job that is deferred without a connection is there at once, also if the transaction is rolled back."""
    external.execute("SELECT 1")
    job_id = external.call(task, "defer", x=1)
    external.rollback()
    assert watch.job(job_id)


@pytest.mark.parametrize(
    "method", [name for name in dir(BaseConnector) if name.endswith("_with_connection")]
)
async def test_what_is_no_connection_is_refused_in_the_same_words(
    installed: None, method: str
) -> None:
    """A connector that cannot use an object says that it "does not support external connections"."""
    with pytest.raises(ConnectorException, match="does not support external connections"):
        await done(getattr(BaseConnector(), method)(object(), "SELECT 1"))


def test_the_connector_in_memory_ignores_the_connection(installed: None) -> None:
    """In a unit test, a job with some object for a connection is kept in memory."""
    connector = InMemoryConnector()
    app = procrastinate.App(connector=connector)
    deferrer = app.configure_task("process_order", connection=object())
    ids = [deferrer.defer(), asyncio.run(deferrer.defer_async())]
    assert list(connector.jobs) == ids
