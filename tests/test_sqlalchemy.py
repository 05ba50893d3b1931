"""What only SQLAlchemy has: sessions with pending rows, binds, engine options, nested transactions."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from holding import External, Watch, hold
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.exceptions import OutsideTransactionWarning
from procrastinate_extconn.kinds import Kind, all_kinds

sa = pytest.importorskip("sqlalchemy")
asyncio_ = pytest.importorskip("sqlalchemy.ext.asyncio")
orm = pytest.importorskip("sqlalchemy.orm")

SESSIONS = [
    kind
    for kind in all_kinds()
    if kind.id in ("sqlalchemy-session-psycopg", "sqlalchemy-scoped-session", "sqlmodel-session")
    or kind.id.startswith("sqlalchemy-async-session")
]

_orders = itertools.count(1)


class Order(orm.declarative_base()):  # type: ignore[misc]
    """A row of the table that the tests' databases have."""

    __tablename__ = "orders"
    id = sa.Column(sa.BigInteger, primary_key=True)


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test has orders of its own."""
    return new_database()


@pytest.fixture
def make_engine(dsn: str) -> Iterator[Callable[..., Any]]:
    """Make an engine: the driver, and what `create_engine` takes."""
    engines = []

    def make(driver: str = "psycopg", **options: Any) -> Any:
        pytest.importorskip(driver)
        url = sa.make_url(dsn).set(drivername=f"postgresql+{driver}")
        engines.append(sa.create_engine(url, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(make_engine: Callable[..., Any]) -> Any:
    """An engine on psycopg."""
    return make_engine()


@pytest.fixture(params=SESSIONS, ids=lambda kind: kind.id)
def external(request: pytest.FixtureRequest, dsn: str) -> Iterator[External]:
    """A session of each kind."""
    kind: Kind = request.param
    if missing := kind.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with hold(kind, dsn) as external:
        yield external


# -- pending rows -----------------------------------------------------------------------------------------------------


def test_pending_rows_are_not_flushed(external: External, task: Any) -> None:
    """Deferring does not send a session's own rows, which might fail in our name."""
    broken = Order(id=None)
    broken.id = 2**80  # no bigint
    external.conn.add(broken)
    external.defer(task)
    assert broken in external.conn.new


def test_pending_rows_go_with_the_job(external: External, task: Any, watch: Watch) -> None:
    """A row that was pending when the job was deferred is committed with it."""
    order = next(_orders)
    external.conn.add(Order(id=order))
    job_id = external.defer(task)
    assert order not in watch.orders()
    external.commit()
    assert order in watch.orders()
    assert watch.job(job_id)


def test_a_session_whose_flush_failed_says_so(external: External, task: Any) -> None:
    """After a failed flush, deferring says that the transaction has failed."""
    external.conn.add(Order(id=2**80))
    with pytest.raises(sa.exc.SQLAlchemyError):
        external.run(external.conn.flush)
    with pytest.raises(extconn.UnusableConnection, match="roll it back"):
        external.defer(task)


# -- binds ------------------------------------------------------------------------------------------------------------


def test_a_session_without_a_bind_is_refused(task: Any) -> None:
    """A session that has no engine is told what to pass instead."""
    with (
        orm.Session() as session,
        pytest.raises(extconn.UnsupportedConnection, match="before there is a row"),
    ):
        task.configure(connection=session).defer()


def test_a_session_with_several_binds_passes_one_connection(
    engine: Any, task: Any, watch: Watch
) -> None:
    """Where each mapper has an engine, the connection of the mapper whose rows go with the job is passed."""
    order = next(_orders)
    with orm.Session(binds={Order: engine}) as session:
        session.add(Order(id=order))
        conn = session.connection(bind_arguments={"mapper": Order})
        job_id = task.configure(connection=conn).defer()
        assert watch.job(job_id) is None
        session.commit()
    assert order in watch.orders()
    assert watch.job(job_id)


def test_a_session_that_chooses_its_bind_is_followed(engine: Any, task: Any, watch: Watch) -> None:
    """A session whose ``get_bind`` routes is asked without a mapper, as for any text."""

    class Routing(orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None, **kwargs: Any) -> Any:
            return engine

    with Routing() as session:
        job_id = task.configure(connection=session).defer()
        session.commit()
    assert watch.job(job_id)


def test_a_session_on_a_connection_is_part_of_its_transaction(
    engine: Any, task: Any, watch: Watch
) -> None:
    """A session that joined a connection's transaction defers into it, as test-suites do."""
    with engine.connect() as conn, conn.begin() as transaction:
        with orm.Session(conn, join_transaction_mode="create_savepoint") as session:
            job_id = task.configure(connection=session).defer()
            session.commit()
        assert watch.job(job_id) is None
        transaction.rollback()
    assert watch.job(job_id) is None


@pytest.mark.parametrize(
    "hold", [lambda engine: engine.connect(), orm.Session], ids=["Connection", "Session"]
)
def test_another_database_is_refused_by_name(task: Any, hold: Callable[[Any], Any]) -> None:
    """A connection or session that is bound to SQLite is told that this is not PostgreSQL."""
    engine = sa.create_engine("sqlite://", poolclass=sa.NullPool)
    with hold(engine) as conn, pytest.raises(extconn.UnsupportedConnection, match="sqlite"):
        task.configure(connection=conn).defer()
    engine.dispose()


@pytest.mark.skipif(not importlib.util.find_spec("aiosqlite"), reason="not installed: aiosqlite")
async def test_another_database_is_refused_by_name_async(task: Any) -> None:
    """So is an async session."""
    engine = asyncio_.create_async_engine("sqlite+aiosqlite://")
    async with asyncio_.AsyncSession(engine) as session:
        with pytest.raises(extconn.UnsupportedConnection, match="sqlite"):
            await task.configure(connection=session).defer_async()
    await engine.dispose()


# -- transactions -----------------------------------------------------------------------------------------------------


def test_the_state_of_a_connection(engine: Any, task: Any) -> None:
    """A connection is idle, in a transaction, failed, closed: as it goes."""
    with engine.connect() as conn:
        assert extconn.describe(conn)[:4] == ("psycopg", "sqlalchemy", False, "idle")
        task.configure(connection=conn).defer()
        assert extconn.describe(conn).state == "in_transaction"
        with pytest.raises(sa.exc.DBAPIError):
            conn.execute(sa.text("SELECT 1 / 0"))
        assert extconn.describe(conn).state == "failed"
        conn.rollback()
        assert extconn.describe(conn).state == "idle"
    assert extconn.describe(conn).state == "closed"
    with pytest.raises(extconn.UnusableConnection, match="is closed"):
        task.configure(connection=conn).defer()


def test_a_session_opens_its_transaction_with_the_job(external: External, task: Any) -> None:
    """An idle session is in a transaction once a job is deferred, as with any statement."""
    assert external.run(lambda: extconn.describe(external.conn)).state == "idle"
    external.defer(task)
    assert external.run(lambda: extconn.describe(external.conn)).state == "in_transaction"
    external.commit()
    assert external.run(lambda: extconn.describe(external.conn)).state == "idle"


@pytest.mark.parametrize(
    "hold", [lambda engine: engine.connect(), orm.Session], ids=["Connection", "Session"]
)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_autocommit_is_warned_of(
    make_engine: Callable[..., Any],
    hold: Callable[[Any], Any],
    driver: str,
    task: Any,
    watch: Watch,
) -> None:
    """On an engine in autocommit, deferring warns that the job is committed by itself."""
    with hold(make_engine(driver, isolation_level="AUTOCOMMIT")) as conn:
        assert extconn.describe(conn).state == "autocommit"
        with pytest.warns(OutsideTransactionWarning, match="isolation_level="):
            job_id = task.configure(connection=conn).defer()
        assert watch.job(job_id)


@pytest.mark.parametrize("how", ["connect_args", "creator", "event"])
@pytest.mark.parametrize("options", [{}, {"savepoint": True}, {"on_conflict": "existing"}])
def test_autocommit_of_the_driver_is_seen_before_a_session_sends(
    make_engine: Callable[..., Any], dsn: str, task: Any, watch: Watch, how: str, options: Any
) -> None:
    """A session that was never used is refused, too, where the driver below it commits each statement."""
    psycopg = pytest.importorskip("psycopg")
    arguments = {
        "connect_args": {"connect_args": {"autocommit": True}},
        "creator": {"creator": lambda: psycopg.connect(dsn, autocommit=True)},
        "event": {},
    }
    engine = make_engine(**arguments[how])
    if how == "event":
        sa.event.listen(engine, "connect", lambda conn, _: conn.set_autocommit(True))
    before = watch.jobs()
    with orm.Session(engine) as session:
        conn = extconn.external(session, outside_transaction="error", **options)
        with pytest.raises(extconn.OutsideTransaction, match="commits each statement by itself"):
            task.configure(connection=conn).defer()
        session.rollback()
        assert watch.jobs() == before
        with pytest.warns(OutsideTransactionWarning, match="commits each statement by itself"):
            job_id = task.configure(connection=session).defer()
    assert watch.job(job_id)


def test_autocommit_of_one_connection_is_warned_of(engine: Any, task: Any) -> None:
    """So is the isolation level that one connection was given."""
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        pytest.warns(OutsideTransactionWarning),
    ):
        task.configure(connection=conn).defer()


@pytest.mark.parametrize(
    "hold", [lambda engine: engine.connect(), orm.Session], ids=["Connection", "Session"]
)
def test_a_nested_transaction_takes_its_job_with_it(
    engine: Any, hold: Callable[[Any], Any], task: Any, watch: Watch
) -> None:
    """What was deferred in a nested transaction is gone when that rolls back; the rest stays."""
    with hold(engine) as conn:
        kept = task.configure(connection=conn).defer()
        with conn.begin_nested() as nested:
            dropped = task.configure(connection=conn).defer()
            nested.rollback()
        conn.commit()
    assert watch.job(kept)
    assert watch.job(dropped) is None


async def test_the_state_of_an_async_connection(dsn: str, task: Any) -> None:
    """A connection from ``engine.connect()`` that nobody awaited is not open yet, nor is one that was closed."""
    pytest.importorskip("greenlet")
    engine = asyncio_.create_async_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg"))
    conn = engine.connect()
    with pytest.raises(extconn.UnusableConnection, match="is closed"):
        await task.configure(connection=conn).defer_async()
    async with conn:
        assert await task.configure(connection=conn).defer_async()
        assert extconn.describe(conn)[:4] == ("psycopg", "sqlalchemy", True, "in_transaction")
    with pytest.raises(extconn.UnusableConnection, match="is closed"):
        await task.configure(connection=conn).defer_async()
    await engine.dispose()


# -- what an engine or a connection was told --------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
@pytest.mark.parametrize(
    "options",
    [
        {"execution_options": {"stream_results": True, "yield_per": 1}},
        {"json_serializer": repr, "json_deserializer": lambda text: text},
        {"hide_parameters": True, "query_cache_size": 0},
    ],
    ids=["streaming", "json", "others"],
)
def test_any_engine_option(
    make_engine: Callable[..., Any], driver: str, options: dict[str, Any], task: Any
) -> None:
    """A job is deferred and read back on engines that treat results and JSON in their own way."""
    payload = {"text": "100% %s :name", "big": 2**70}
    with make_engine(driver, **options).connect() as conn:
        ids = task.configure(connection=conn).batch_defer(payload, payload)
        for job_id in ids:
            (job,) = JobManager(ExternalConnector(conn)).list_jobs(id=job_id)
            assert (job.id, job.task_kwargs) == (job_id, payload)


def test_a_persons_listener_sees_the_statement(engine: Any, task: Any) -> None:
    """The statement goes through SQLAlchemy, where instrumentation listens."""
    seen = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    with orm.Session(engine) as session:
        task.configure(connection=session).defer()
    assert "procrastinate_defer_jobs" in str(seen)


# -- what is a connection ---------------------------------------------------------------------------------------------


def test_what_only_makes_connections_is_refused(engine: Any, task: Any) -> None:
    """An engine, what is inside it, and a sessionmaker are told the line that gets a connection from them."""
    inside = (engine, engine.pool)
    for conn, line in (
        *((one, r"`with engine\.begin\(\) as conn: \.\.\.`") for one in inside),
        (engine.url, r"`with create_engine\(url\)\.begin\(\) as conn: \.\.\.`"),
        (orm.sessionmaker(engine), r"`with sessionmaker\.begin\(\) as session: \.\.\.`"),
    ):
        with pytest.raises(extconn.UnsupportedConnection, match=line):
            task.configure(connection=conn).defer()


def test_a_pool_handle_is_refused_with_the_line_to_its_transaction(
    engine: Any, task: Any, watch: Watch
) -> None:
    """The pool's handle of a connection leads to the driver's, in the transaction that its owner has open."""
    with contextlib.closing(engine.raw_connection()) as raw:
        with contextlib.closing(raw.cursor()) as cursor:
            cursor.execute(f"INSERT INTO orders VALUES ({next(_orders)})")
        with pytest.raises(extconn.UnsupportedConnection, match=r"`raw\.driver_connection`"):
            task.configure(connection=raw).defer()
        undone = task.configure(connection=raw.driver_connection).defer()
        raw.rollback()
        job_id = task.configure(connection=raw.driver_connection).defer()
        raw.commit()
    assert watch.job(job_id)
    assert watch.job(undone) is None


def test_a_transaction_is_refused(engine: Any, task: Any) -> None:
    """What `begin()` of a connection or a session yields is told where that one is."""
    with engine.connect() as conn, orm.Session(engine) as session:
        for transaction, line in (
            (conn.begin(), r"`transaction\.connection`"),
            (session.begin(), r"`transaction\.session`"),
        ):
            with pytest.raises(extconn.UnsupportedConnection, match=line):
                task.configure(connection=transaction).defer()


async def test_an_async_transaction_is_refused(dsn: str, task: Any) -> None:
    """So are those of an async connection and an async session."""
    pytest.importorskip("greenlet")
    engine = asyncio_.create_async_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg"))
    async with engine.connect() as conn, asyncio_.AsyncSession(engine) as session:
        for begun in (conn.begin(), session.begin()):
            async with begun as transaction:
                with pytest.raises(extconn.UnsupportedConnection, match=r"`transaction\."):
                    await task.configure(connection=transaction).defer_async()
    await engine.dispose()


async def test_what_only_makes_async_connections_is_refused(dsn: str, task: Any) -> None:
    """So are an async engine and an async sessionmaker."""
    pytest.importorskip("greenlet")
    engine = asyncio_.create_async_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg"))
    for conn in (engine, asyncio_.async_sessionmaker(engine)):
        with pytest.raises(extconn.UnsupportedConnection, match="`async with"):
            await task.configure(connection=conn).defer_async()
    await engine.dispose()
