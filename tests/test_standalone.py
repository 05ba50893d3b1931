"""`standalone` is for calls that are meant to commit by themselves, and ends where it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import psycopg_pool
import pytest
from holding import Watch

import procrastinate_extconn as extconn


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test looks at its own jobs."""
    return new_database()


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """A forgotten connection is an error."""
    extconn.install(outside_transaction="error")
    yield
    extconn.uninstall()


@pytest.fixture
def app(dsn: str) -> Iterator[procrastinate.App]:
    """An open app."""
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1))
    with app.open():
        yield app


@pytest.fixture
def defer(app: procrastinate.App) -> Callable[[], int]:
    """Defer a job without a connection."""
    return app.configure_task("process_order").defer


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


def refused() -> Any:
    """A forgotten connection is found."""
    return pytest.raises(extconn.OutsideTransaction, match="this call has no connection")


def test_it_leaves_a_using_block(defer: Any, conn: Any, watch: Watch) -> None:
    """Inside `using`, what is deferred in `standalone` is there at once, and what comes after is not."""
    with extconn.using(conn):
        with extconn.standalone():
            committed = defer()
        open_yet = defer()
        assert watch.job(committed)
        assert not watch.job(open_yet)


def test_a_using_block_inside_decides(defer: Any, conn: Any, watch: Watch) -> None:
    """The innermost block decides: `using` inside `standalone` is a transaction again."""
    with extconn.standalone():
        with extconn.using(conn):
            open_yet = defer()
        committed = defer()
    assert watch.job(committed)
    assert not watch.job(open_yet)


def test_it_ends_with_the_block(defer: Any) -> None:
    """After the block, also by an exception, a forgotten connection is found again."""
    with pytest.raises(LookupError), extconn.standalone():
        raise LookupError
    with refused():
        defer()


def test_blocks_nest(defer: Any) -> None:
    """Leaving the inner of two blocks leaves the outer one open."""
    with extconn.standalone():
        with extconn.standalone():
            pass
        assert defer()


def test_it_says_nothing_of_a_connection_that_is_passed(app: Any, dsn: str) -> None:
    """An autocommit connection is judged by `outside_transaction` in the block too."""
    refused = pytest.raises(extconn.OutsideTransaction, match="this psycopg connection is not in")
    with psycopg.connect(dsn, autocommit=True) as conn, extconn.standalone(), refused:
        app.configure_task("process_order", connection=conn).defer()


async def test_tasks_and_threads_that_are_started_inside_are_inside(defer: Any) -> None:
    """A context that is copied while the block is open is inside, until the block ends."""
    with extconn.standalone():
        assert await asyncio.to_thread(defer)
        ended = asyncio.Event()
        late = asyncio.create_task(_after(ended, defer))
        await asyncio.sleep(0)
        context = contextvars.copy_context()
        assert context.run(defer)
    ended.set()
    with refused():
        await late
    with refused():
        context.run(defer)


async def _after(event: asyncio.Event, defer: Callable[[], int]) -> int:
    assert defer()
    await event.wait()
    return defer()


def test_a_copy_in_a_using_block_is_in_that_one_when_it_has_ended(conn: Any, defer: Any) -> None:
    """What inherited a `standalone` block that has ended is where that one was entered: in another's transaction."""
    with extconn.using(conn):
        with extconn.standalone():
            context = contextvars.copy_context()
        with _thread(lambda: context.run(defer)) as errors:
            pass
    assert "inherited a using() block" in str(errors[0])


@contextlib.contextmanager
def _thread(call: Callable[[], object]) -> Iterator[list[Exception]]:
    errors: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as exc:  # noqa: BLE001 - the test has it
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    thread.join()


async def test_an_executor_copies_no_context(defer: Any) -> None:
    """`run_in_executor` hands the block on as little as any other context: what runs there is refused."""
    with extconn.standalone(), refused():
        await asyncio.get_running_loop().run_in_executor(None, defer)


def test_a_block_that_is_left_in_another_context_has_ended(defer: Any) -> None:
    """A generator that is closed elsewhere ends its block for all."""

    def block() -> Iterator[None]:
        with extconn.standalone():
            yield

    generator = block()
    next(generator)
    assert defer()
    contextvars.Context().run(generator.close)  # type: ignore[attr-defined]
    with refused():
        defer()


# -- a using block -----------------------------------------------------------------------------------------------------


def test_a_connector_that_is_not_patched_is_refused_in_a_block(dsn: str, conn: Any) -> None:
    """An app that nobody patched would ignore the block: it is refused, and passes in `standalone`."""
    extconn.uninstall()
    extconn.patch(procrastinate.App(connector=(patched := procrastinate.PsycopgConnector())))
    _refused_unless_standalone(dsn, conn)
    extconn.unpatch(patched)


def test_so_is_one_beside_a_pool_connector(dsn: str, conn: Any) -> None:
    """Where an app of `PoolConnector` is all that knows of blocks, another app is refused in one."""
    extconn.uninstall()
    pool = extconn.PoolConnector(psycopg_pool.ConnectionPool(dsn, open=False))
    _refused_unless_standalone(dsn, conn)
    del pool


def _refused_unless_standalone(dsn: str, conn: Any) -> None:
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1))
    with app.open(), extconn.using(conn):
        with pytest.raises(extconn.ExternalConnectionError, match="SyncPsycopgConnector is not pa"):
            app.configure_task("process_order").defer()
        with extconn.standalone():
            assert app.configure_task("process_order").defer()


@pytest.mark.parametrize("mode", ["allow", "error"])
def test_a_replaced_connector_is_in_the_block(dsn: str, conn: Any, watch: Watch, mode: Any) -> None:
    """The connector that replaces a patched app's runs on the block's connection too."""
    extconn.uninstall()
    first, second = (procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1) for _ in "12")
    app = extconn.patch(procrastinate.App(connector=first), without_connection=mode)
    with app.replace_connector(second), app.open():
        with extconn.using(conn):
            job_id = app.configure_task("process_order").defer()
        if mode == "error":
            with refused():
                app.configure_task("process_order").defer()
    assert not watch.job(job_id)
    conn.commit()
    assert watch.job(job_id)
    extconn.unpatch(app)


# -- hooks that run after the commit -----------------------------------------------------------------------------------


def test_sqlalchemys_after_commit(dsn: str, defer: Any, watch: Watch) -> None:
    """A hook that defers after the commit is told so, in a block, and `standalone` is its way."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sqlalchemy.create_engine(dsn.replace("postgresql", "postgresql+psycopg"))
    refusals: list[str] = []
    ids: list[int] = []
    with orm.Session(engine) as session:

        @sqlalchemy.event.listens_for(session, "after_commit")
        def hook(session: Any) -> None:
            with pytest.raises(extconn.ExternalConnectionError) as caught:
                defer()
            refusals.append(str(caught.value))
            with extconn.standalone():
                ids.append(defer())

        with extconn.using(session):
            session.execute(sqlalchemy.text("SELECT 1"))
            session.commit()
    engine.dispose()
    (refusal,) = refusals
    assert "after_commit" in refusal
    assert "standalone()" in refusal
    assert watch.job(ids[0])
