"""Sessions with several engines: the job goes where the rows go, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from holding import Watch

import procrastinate_extconn as extconn
from procrastinate_extconn.builtin.sqlalchemy_kinds import url

sa = pytest.importorskip("sqlalchemy")
asyncio_ = pytest.importorskip("sqlalchemy.ext.asyncio")
orm = pytest.importorskip("sqlalchemy.orm")
horizontal_shard = pytest.importorskip("sqlalchemy.ext.horizontal_shard")

CURE = r"session\.connection\(bind_arguments="


class Order(orm.declarative_base()):  # type: ignore[misc]
    """A row of the table that the tests' databases have."""

    __tablename__ = "orders"
    id = sa.Column(sa.BigInteger, primary_key=True)


@pytest.fixture
def engine(dsn: str) -> Iterator[Any]:
    """An engine on the queue's database."""
    engine = sa.create_engine(url(dsn, "psycopg"))
    yield engine
    engine.dispose()


@pytest.fixture
def other(new_database: Callable[[], str]) -> Iterator[Any]:
    """An engine on another database."""
    engine = sa.create_engine(url(new_database(), "psycopg"))
    yield engine
    engine.dispose()


def routing(leader: Any, follower: Any) -> type[Any]:
    """SQLAlchemy's documented class: flushes, updates and deletes go to the leader, all else to a follower."""

    class RoutingSession(orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None, clause: Any = None, **kwargs: Any) -> Any:
            if self._flushing or isinstance(clause, (sa.Update, sa.Delete)):
                return leader
            return follower

    return RoutingSession


def by_mapper(main: Any, other: Any) -> type[Any]:
    """A class as Flask-SQLAlchemy's: each model has its engine, and the rest goes to the main one."""

    class BoundSession(orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:
            return other if mapper is not None and mapper.class_ is Order else main

    return BoundSession


def test_binds_of_several_engines_are_refused(engine: Any, other: Any, task: Any) -> None:
    """A session whose `binds` name another engine is refused, with the line that settles it."""
    with orm.Session(engine, binds={Order: other}) as session:
        session.add(Order(id=1))
        with pytest.raises(extconn.UnsupportedConnection, match=CURE):
            task.configure(connection=session).defer()


def test_the_line_settles_it(engine: Any, other: Any, task: Any, watch: Watch) -> None:
    """With the connection that the line gives, row and job share a transaction."""
    with orm.Session(other, binds={Order: engine}) as session:
        session.add(Order(id=1))
        conn = session.connection(bind_arguments={"mapper": Order})
        task.configure(connection=conn).defer()
        session.rollback()
        assert (watch.orders(), watch.jobs()) == ([], [])
        session.add(Order(id=2))
        conn = session.connection(bind_arguments={"mapper": Order})
        job_id = task.configure(connection=conn).defer()
        session.commit()
    assert (watch.orders(), watch.jobs()) == ([2], [job_id])


def test_a_session_that_reads_from_a_follower_is_refused(
    engine: Any, other: Any, task: Any
) -> None:
    """A session whose inserts and updates go to different engines is refused."""
    with (
        routing(engine, other)() as session,
        pytest.raises(extconn.UnsupportedConnection, match="several engines"),
    ):
        task.configure(connection=session).defer()


@pytest.mark.parametrize("flushed", [False, True])
def test_a_row_elsewhere_is_noticed(engine: Any, other: Any, task: Any, flushed: bool) -> None:
    """A session that holds a row for another engine is refused, before the flush and after it."""
    with by_mapper(engine, other)() as session:
        session.add(Order(id=1))
        if flushed:
            session.flush()
        with pytest.raises(extconn.UnsupportedConnection, match=CURE):
            task.configure(connection=session).defer()


def test_a_session_without_such_a_row_defers(
    engine: Any, other: Any, task: Any, watch: Watch
) -> None:
    """The same session defers in its main engine's transaction where it has no row elsewhere."""
    with by_mapper(engine, other)() as session:
        task.configure(connection=session).defer()
        session.rollback()
        job_id = task.configure(connection=session).defer()
        session.commit()
    assert watch.jobs() == [job_id]


def test_a_sharded_session_is_refused(engine: Any, other: Any, task: Any) -> None:
    """A session that chooses an engine by the row is refused."""
    session = horizontal_shard.ShardedSession(
        shards={"a": engine, "b": other},
        shard_chooser=lambda mapper, instance, clause=None: 1 / 0,
        identity_chooser=lambda *args, **kwargs: ["a"],
        execute_chooser=lambda *args: ["a"],
    )
    with session, pytest.raises(extconn.UnsupportedConnection, match="shard_id"):
        task.configure(connection=session).defer()


def test_a_session_of_one_engine_notices_nothing(engine: Any, task: Any, watch: Watch) -> None:
    """A session whose class could route, and whose engines are one, defers in its transaction."""
    with routing(engine, engine)(binds={Order: engine}) as session:
        session.add(Order(id=1))
        job_id = task.configure(connection=session).defer()
        session.commit()
    assert (watch.orders(), watch.jobs()) == ([1], [job_id])


async def test_an_async_session_is_refused(dsn: str, task: Any) -> None:
    """So is an async session."""
    engine = asyncio_.create_async_engine(url(dsn, "psycopg"))
    elsewhere = asyncio_.create_async_engine(url(dsn, "psycopg"))
    async with asyncio_.AsyncSession(engine, binds={Order: elsewhere}) as session:
        with pytest.raises(extconn.UnsupportedConnection, match=CURE):
            await task.configure(connection=session).defer_async()
    await engine.dispose()


def test_zope_commits_a_job_alone(engine: Any, task: Any, watch: Watch) -> None:
    """Under zope.sqlalchemy, a session whose only work is a job is committed with the transaction."""
    transaction = pytest.importorskip("transaction")
    zope = pytest.importorskip("zope.sqlalchemy")
    manager = transaction.TransactionManager(explicit=True)
    session = orm.Session(engine)
    zope.register(session, transaction_manager=manager)
    manager.begin()
    task.configure(connection=session).defer()
    manager.abort()
    manager.begin()
    job_id = task.configure(connection=session).defer()
    manager.commit()
    assert watch.jobs() == [job_id]


def test_a_lost_commit_leaves_no_job_without_its_row(engine: Any, other: Any, task: Any) -> None:
    """Where the other engine's commit fails, there is no job that could have been left behind."""
    with orm.Session(engine, binds={Order: other}) as session:
        session.add(Order(id=1))
        session.flush()
        with pytest.raises(extconn.UnsupportedConnection):
            task.configure(connection=session).defer()
        session.connection(bind_arguments={"mapper": Order}).invalidate()
    with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(False)) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() == (0,)
