"""A call that was given no connection is refused before anything is sent, where it would commit by itself."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import procrastinate
import psycopg
import psycopg_pool
import pytest
from holding import Watch, opened, opened_async, unopened
from procrastinate.exceptions import AppNotOpen
from procrastinate.utils import sync_to_async, utcnow

import procrastinate_extconn as extconn
from procrastinate_extconn.exceptions import OutsideTransactionWarning
from procrastinate_extconn.testing import StrictInMemoryConnector
from procrastinate_extconn.testing.contract.wiretap import Wiretap, asked, tapped

MODES = [None, "allow", "warn", "error"]


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test looks at its own jobs."""
    return new_database()


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    """No test leaves the layer on."""
    yield
    extconn.uninstall()


class Way(NamedTuple):
    """A connector of an app's, and whether and how the app is open."""

    make: Callable[[str], Any]
    state: Callable[[procrastinate.App], contextlib.AbstractContextManager[None]]
    requires: str = "psycopg"


def psycopg_async(dsn: str) -> Any:
    """Connect by psycopg, sync and async."""
    return procrastinate.PsycopgConnector(conninfo=dsn, min_size=1)


def psycopg_sync(dsn: str) -> Any:
    """Connect by psycopg, sync."""
    return procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1)


def psycopg2(dsn: str) -> Any:
    """Connect by psycopg2."""
    module = importlib.import_module("procrastinate.contrib.psycopg2")
    return module.Psycopg2Connector(dsn=dsn)


def sqlalchemy(dsn: str) -> Any:
    """Connect by SQLAlchemy."""
    module = importlib.import_module("procrastinate.contrib.sqlalchemy")
    return module.SQLAlchemyPsycopg2Connector(dsn=dsn.replace("postgresql", "postgresql+psycopg2"))


def aiopg(dsn: str) -> Any:
    """Connect by aiopg."""
    module = importlib.import_module("procrastinate.contrib.aiopg")
    return module.AiopgConnector(dsn=dsn)


def pool_sync(dsn: str) -> Any:
    """Stand on a pool of the application's."""
    return extconn.PoolConnector(psycopg_pool.ConnectionPool(dsn, open=False))


def pool_async(dsn: str) -> Any:
    """Stand on an async pool of the application's."""
    return extconn.PoolConnector(psycopg_pool.AsyncConnectionPool(dsn, open=False))


def in_memory(dsn: str) -> Any:
    """Keep jobs in memory, and be strict."""
    return StrictInMemoryConnector()


WAYS = [
    Way(psycopg_async, unopened),
    Way(psycopg_async, opened),
    Way(psycopg_async, opened_async),
    Way(psycopg_sync, unopened),
    Way(psycopg_sync, opened),
    Way(psycopg2, unopened, "psycopg2"),
    Way(psycopg2, opened, "psycopg2"),
    Way(sqlalchemy, unopened, "sqlalchemy"),
    Way(aiopg, unopened, "aiopg"),
    Way(aiopg, opened_async, "aiopg"),
    Way(pool_sync, unopened),
    Way(pool_async, unopened),
    Way(in_memory, unopened),
]


@pytest.fixture
def wiretap(dsn: str) -> Iterator[Wiretap]:
    """All that is sent to the database."""
    with tapped(dsn) as wiretap:
        yield wiretap


@pytest.fixture(params=WAYS, ids=lambda way: f"{way.make.__name__}-{way.state.__name__}")
def app(request: pytest.FixtureRequest, wiretap: Wiretap) -> Iterator[procrastinate.App]:
    """An app on each connector, opened in each way, with a task."""
    way: Way = request.param
    pytest.importorskip(way.requires)
    app = procrastinate.App(connector=way.make(wiretap.dsn))
    app.task(name="process_order")(lambda **arguments: None)
    with way.state(app):
        yield app


CHANGES: dict[str, Callable[[procrastinate.App, str], Any]] = {
    "defer": lambda app, end: getattr(app.tasks["process_order"], f"defer{end}")(),
    "batch_defer": lambda app, end: getattr(app.tasks["process_order"], f"batch_defer{end}")({}),
    "unknown": lambda app, end: getattr(app.configure_task("other"), f"defer{end}")(),
    "cancel": lambda app, end: getattr(app.job_manager, f"cancel_job_by_id{end}")(1),
    "retry": lambda app, end: getattr(app.job_manager, f"retry_job_by_id{end}")(1, utcnow()),
}


def call(app: procrastinate.App, change: str, end: str) -> Any:
    """Change something by a sync call, or by an async one in a loop of its own."""
    if not end:
        return CHANGES[change](app, end)

    async def in_loop() -> Any:
        return await CHANGES[change](app, end)

    return asyncio.run(in_loop())


@pytest.mark.parametrize("end", ["", "_async"], ids=["sync", "async"])
def test_it_is_refused_before_anything_is_sent(
    app: procrastinate.App, wiretap: Wiretap, end: str
) -> None:
    """Each call that changes jobs is refused, sync and async, opened or not, and the text says what to do."""
    extconn.install(without_connection="error")
    wiretap.take()
    for change in CHANGES:
        with pytest.raises(extconn.OutsideTransaction) as caught:
            call(app, change, end)
        for advice in ("configure(connection=...)", "using(", "standalone()", "on_commit"):
            assert advice in str(caught.value)
    assert asked(wiretap.take()) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [psycopg_async, psycopg_sync, pool_sync, in_memory])
def test_each_mode(dsn: str, mode: Any, make: Callable[[str], Any]) -> None:
    """`"warn"` warns once, at the caller's line, and `standalone` passes in every mode."""
    extconn.install(without_connection=mode)
    app = procrastinate.App(connector=make(dsn))
    refused = pytest.raises(extconn.OutsideTransaction)
    with lent(app):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with refused if mode == "error" else contextlib.nullcontext():
                app.configure_task("process_order").batch_defer({})
        expected = [(OutsideTransactionWarning, __file__)] * (mode == "warn")
        assert [(one.category, one.filename) for one in caught] == expected
        with extconn.standalone():
            assert app.configure_task("process_order").defer()


@contextlib.contextmanager
def lent(app: procrastinate.App) -> Iterator[None]:
    """Open the app, and the pool that it may stand on."""
    pool: Any = None
    if isinstance(app.connector, extconn.PoolConnector):
        pool = app.connector.pool
    with pool or contextlib.nullcontext(), app.open():
        yield


async def test_async_calls_in_each_mode(dsn: str, watch: Watch) -> None:
    """An async call is refused, warned of once at the caller's line, or passes, as a sync one is."""
    app = procrastinate.App(connector=psycopg_async(dsn))
    deferrer = app.configure_task("process_order")
    async with app.open_async():
        extconn.install(without_connection="warn")
        with pytest.warns(OutsideTransactionWarning) as caught:
            job_id = await deferrer.defer_async()
        assert [one.filename for one in caught] == [__file__]
        assert watch.job(job_id)
        extconn.install(without_connection="error")
        with pytest.raises(extconn.OutsideTransaction):
            await deferrer.defer_async()
        with extconn.standalone():
            assert watch.job(await deferrer.defer_async())


async def test_a_sync_call_of_an_open_async_app_warns_once(dsn: str) -> None:
    """A sync call that Procrastinate makes an async one of, as in a sync task, is warned of once."""
    app = procrastinate.App(connector=psycopg_async(dsn))

    def defer() -> int:
        return app.configure_task("process_order").defer()

    extconn.install(without_connection="warn")
    async with app.open_async():
        with pytest.warns(OutsideTransactionWarning) as caught:
            assert await sync_to_async(defer)
    assert [one.filename for one in caught] == [__file__]


@pytest.mark.parametrize(("outside", "without"), list(itertools.product(MODES, MODES)))
@pytest.mark.parametrize("turn_on", ["install", "patch"])
def test_what_holds_where_it_was_not_set(
    turn_on: str, outside: Any, without: Any, wiretap: Wiretap
) -> None:
    """If it was never set, it is an error where `outside_transaction` is one, and else allowed."""
    modes = {"outside_transaction": outside, "without_connection": without}
    app = procrastinate.App(connector=psycopg_sync(wiretap.dsn))
    if turn_on == "install":
        extconn.install(**modes)
    else:
        extconn.patch(app, **modes)
    expected = without or ("error" if outside == "error" else "allow")
    with app.open():
        deferrer = app.configure_task("process_order")
        if expected == "error":
            with pytest.raises(extconn.OutsideTransaction):
                deferrer.defer()
        elif expected == "warn":
            with pytest.warns(OutsideTransactionWarning):
                deferrer.defer()
        else:
            deferrer.defer()
    extconn.unpatch(app)


def test_patch_wins_over_install_and_uninstall_forgets(dsn: str) -> None:
    """The mode of one app is its own; without one, `install` decides, until `uninstall`."""
    extconn.install(without_connection="error")
    lenient, other = (procrastinate.App(connector=psycopg_sync(dsn)) for _ in range(2))
    extconn.patch(lenient, without_connection="allow")
    with lenient.open(), other.open():
        lenient.configure_task("process_order").defer()
        with pytest.raises(extconn.OutsideTransaction):
            other.configure_task("process_order").defer()
        extconn.uninstall()
        extconn.install()
        other.configure_task("process_order").defer()
    extconn.unpatch(lenient)


@pytest.mark.parametrize("turn_on", [extconn.install, StrictInMemoryConnector])
def test_a_mode_that_does_not_exist_is_refused(turn_on: Any) -> None:
    """A misspelt mode is a `ValueError` that names the argument and the modes."""
    with pytest.raises(ValueError, match="without_connection should be one of 'allow', 'warn', 'e"):
        turn_on(without_connection="eror")


def test_reading_is_never_refused(dsn: str) -> None:
    """Jobs, queues, tasks, locks and a status are read without a connection."""
    extconn.install(without_connection="error")
    app = procrastinate.App(connector=psycopg_sync(dsn))
    manager = app.job_manager
    with app.open():
        with extconn.standalone():
            job_id = app.configure_task("process_order").defer()
        assert manager.get_job_status(job_id).value == "todo"
        assert app.check_connection()
        for name in "jobs", "queues", "tasks", "locks":
            getattr(manager, f"list_{name}")()


@pytest.mark.parametrize(
    "make",
    [psycopg_async, psycopg_sync, pytest.param(psycopg2, id="psycopg2")],
)
def test_an_app_that_is_not_open_says_so_in_standalone(
    dsn: str, make: Callable[[str], Any]
) -> None:
    """Inside `standalone` it is Procrastinate's own error that comes."""
    if make is psycopg2:
        pytest.importorskip("psycopg2")
    extconn.install(without_connection="error")
    app = procrastinate.App(connector=make(dsn))
    with extconn.standalone(), pytest.raises(AppNotOpen):
        app.configure_task("process_order").defer()


def test_a_connection_that_was_passed_is_not_forgotten(dsn: str, watch: Watch) -> None:
    """With `configure(connection=...)`, and in a `using` block, the transaction decides as before."""
    extconn.install(without_connection="error")
    app = procrastinate.App(connector=psycopg_async(dsn))
    deferrer = app.configure_task("process_order")
    with psycopg.connect(dsn) as conn:
        with extconn.using(conn):
            inside = deferrer.defer()
        passed = app.configure_task("process_order", connection=conn).defer()
        assert not watch.job(inside)
        conn.commit()
    assert watch.job(inside)
    assert watch.job(passed)


def test_memory_has_a_mode_of_its_own() -> None:
    """`StrictInMemoryConnector` judges by its own mode, whether the layer is on or off."""
    strict, lenient = StrictInMemoryConnector(without_connection="error"), StrictInMemoryConnector()
    with pytest.raises(extconn.OutsideTransaction):
        procrastinate.App(connector=strict).configure_task("process_order").defer()
    assert not strict.jobs
    assert procrastinate.App(connector=lenient).configure_task("process_order").defer() == 1
    extconn.install(outside_transaction="error")
    with pytest.raises(extconn.OutsideTransaction):
        procrastinate.App(connector=lenient).configure_task("process_order").defer()
