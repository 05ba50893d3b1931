"""SQLAlchemy sessions that may have several engines, and sessions of a transaction manager's."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from procrastinate.exceptions import ConnectorException

import procrastinate_extconn as extconn

sa = pytest.importorskip("sqlalchemy")
orm = pytest.importorskip("sqlalchemy.orm")
horizontal_shard = pytest.importorskip("sqlalchemy.ext.horizontal_shard")

Base: Any = orm.declarative_base()


class Order(Base):
    """A row that goes with its job."""

    __tablename__ = "orders"
    id = sa.Column(sa.BigInteger, primary_key=True)


class Visit(Base):
    """A row that some sessions keep on another engine."""

    __tablename__ = "visits"
    id = sa.Column(sa.BigInteger, primary_key=True)


class Engines:
    """The engine with Procrastinate's schema, and another one."""

    def __init__(self, main_dsn: str, other_dsn: str) -> None:
        self.dsns = main_dsn, other_dsn
        self.main, self.other = map(self.make, self.dsns)
        Base.metadata.create_all(self.main)
        Base.metadata.create_all(self.other)

    def make(self, dsn: str, driver: str = "psycopg") -> Any:
        return sa.create_engine(self.url(dsn, driver), poolclass=sa.NullPool)

    def url(self, dsn: str, driver: str = "psycopg") -> Any:
        return sa.make_url(dsn).set(drivername=f"postgresql+{driver}")

    def jobs(self) -> tuple[int, int]:
        """How many jobs the two databases have."""
        return self._count(self.main), self._count(self.other)

    def _count(self, engine: Any, table: str = "procrastinate_jobs") -> int:
        with engine.connect() as conn:
            return int(conn.scalar(sa.text(f"SELECT count(*) FROM {table}")))


@pytest.fixture
def engines(new_database: Callable[[], str]) -> Engines:
    """Two databases."""
    return Engines(new_database(), new_database())


def by_keyword(engines: Engines) -> Any:
    """A `get_bind` that takes anything."""

    class Session(orm.Session):  # type: ignore[misc]
        def get_bind(self, *args: Any, **kwargs: Any) -> Any:
            return engines.main

    return Session()


def by_mapper_alone(engines: Engines) -> Any:
    """A `get_bind` that takes a mapper and nothing else."""

    class Session(orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None) -> Any:
            return engines.main

    return Session()


def one_bind(engines: Engines) -> Any:
    """Binds that name one engine."""
    return orm.Session(binds={Order: engines.main, Visit: engines.main})


def one_shard(engines: Engines) -> Any:
    """A sharded session of one shard."""
    return sharded(main=engines.main)


def a_replica(engines: Engines) -> Any:
    """Reads go to a replica, and each write to the main engine."""

    class Session(orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:
            writes = self._flushing or isinstance(clause, (sa.Update, sa.Delete, sa.Insert))
            return engines.main if writes else engines.other

    return Session()


def sharded(**shards: Any) -> Any:
    """A session that finds an order's shard by its id."""

    def choose(*_: Any) -> str:
        return next(iter(shards))

    return horizontal_shard.ShardedSession(
        shards=shards,
        shard_chooser=choose,
        identity_chooser=lambda *_, **__: list(shards),
        execute_chooser=lambda _: list(shards),
    )


@pytest.mark.parametrize("make", [by_keyword, by_mapper_alone, one_bind, one_shard, a_replica])
def test_a_session_that_writes_to_one_engine(make: Any, engines: Engines, task: Any) -> None:
    """The job and the row go to that engine in one transaction, with sessions of each class."""
    with make(engines) as session:
        session.add(Order(id=1))
        task.configure(connection=session).defer()
        assert extconn.describe(session).state == "in_transaction"
        session.rollback()
        assert engines.jobs() == (0, 0)
        session.add(Order(id=1))
        session.flush()
        task.configure(connection=session).defer()
        session.commit()
    assert engines.jobs() == (1, 0)


def test_binds_are_refused_with_the_line_that_settles_it(engines: Engines, task: Any) -> None:
    """Where a mapper has another engine, the session is refused, and the connection for the mapper is taken."""
    with orm.Session(engines.other, binds={Order: engines.main}) as session:
        session.add(Order(id=1))
        with pytest.raises(extconn.UnsupportedConnection, match=r"several engines.*bind_arguments"):
            task.configure(connection=session).defer()
        where = {"mapper": Order, "clause": sa.update(Order)}
        conn = session.connection(bind_arguments=where)
        task.configure(connection=conn).defer()
        session.commit()
    assert engines.jobs() == (1, 0)


def test_shards_are_refused_with_the_line_that_settles_it(engines: Engines, task: Any) -> None:
    """A session of several shards is refused, and the connection of one shard is taken."""
    with sharded(main=engines.main, other=engines.other) as session:
        session.add(Order(id=1))
        with pytest.raises(extconn.UnsupportedConnection, match="shard_id"):
            task.configure(connection=session).defer()
        conn = session.connection(bind_arguments={"shard_id": "main"})
        task.configure(connection=conn).defer()
        session.commit()
    assert engines.jobs() == (1, 0)


def documented(engines: Engines, base: Any = None) -> Any:
    """SQLAlchemy's documented class: visits on an engine of their own, and followers for what is no update."""

    class RoutingSession(base or orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:
            if mapper and issubclass(mapper.class_, Visit):
                return engines.other
            if self._flushing or isinstance(clause, (sa.Update, sa.Delete, sa.Insert)):
                return engines.main
            return engines.main

    return RoutingSession


def test_a_row_for_another_engine_before_the_job(engines: Engines, task: Any) -> None:
    """A row that is pending for another engine, or was flushed to it, refuses the job."""
    for flushed in (False, True):
        with documented(engines)() as session:
            session.add(Visit(id=1))
            if flushed:
                session.flush()
            with pytest.raises(extconn.UnsupportedConnection, match="RoutingSession with several"):
                task.configure(connection=session).defer()


@pytest.mark.parametrize("options", [{}, {"savepoint": True}, {"on_conflict": "existing"}])
def test_a_row_for_another_engine_after_the_job(
    engines: Engines, task: Any, options: dict[str, Any]
) -> None:
    """The flush of a row for another engine is refused, and the next transaction is free of it."""
    with documented(engines)() as session:
        task.configure(connection=extconn.external(session, **options)).defer()
        session.add(Visit(id=1))
        with pytest.raises(extconn.UnsupportedConnection, match="RoutingSession with several"):
            session.commit()
        session.rollback()
        assert engines.jobs() == (0, 0)
        session.add(Visit(id=1))
        session.commit()
    assert engines.jobs() == (0, 0)


def test_a_statement_for_another_engine_after_the_job(engines: Engines, task: Any) -> None:
    """It is refused as a row is, and one for the job's engine passes."""

    class Session(orm.Session):  # type: ignore[misc]
        def get_bind(self, mapper: Any = None, **kwargs: Any) -> Any:
            return engines.other if mapper and mapper.class_ is Visit else engines.main

    with Session() as session:
        task.configure(connection=session).defer()
        session.execute(sa.insert(Order), [{"id": 1}])
        session.execute(sa.select(Visit))
        with pytest.raises(extconn.UnsupportedConnection, match="several engines"):
            session.execute(sa.insert(Visit), [{"id": 1}])
    assert engines.jobs() == (0, 0)


async def test_an_async_session(engines: Engines, task: Any) -> None:
    """An async session is asked through its synchronous one."""
    asyncio_ = pytest.importorskip("sqlalchemy.ext.asyncio")
    sync_class = documented(engines)
    async_engines = [
        asyncio_.create_async_engine(engines.url(dsn), poolclass=sa.NullPool)
        for dsn in engines.dsns
    ]
    engines.main, engines.other = (engine.sync_engine for engine in async_engines)
    async with asyncio_.AsyncSession(sync_session_class=sync_class) as session:
        session.add(Visit(id=1))
        with pytest.raises(extconn.UnsupportedConnection, match="RoutingSession with several"):
            await task.configure(connection=session).defer_async()
        await session.rollback()
        session.add(Order(id=1))
        await task.configure(connection=session).defer_async()
        await session.commit()
    engines.main, engines.other = map(engines.make, engines.dsns)
    assert engines.jobs() == (1, 0)


def test_bind_keys_of_flask_sqlalchemy(engines: Engines, task: Any) -> None:
    """A model with a bind key is on another engine: its rows and a job are refused together."""
    flask = pytest.importorskip("flask")
    flask_sqlalchemy = pytest.importorskip("flask_sqlalchemy")
    app = flask.Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = engines.url(engines.dsns[0])
    app.config["SQLALCHEMY_BINDS"] = {"visits": engines.url(engines.dsns[1])}
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": sa.NullPool}
    db = flask_sqlalchemy.SQLAlchemy(app)

    class Keyed(db.Model):  # type: ignore[misc, name-defined]
        __tablename__ = "visits"
        __bind_key__ = "visits"
        id = sa.Column(sa.BigInteger, primary_key=True)

    with app.app_context():
        task.configure(connection=db.session).defer()
        db.session.commit()
        db.session.add(Keyed(id=1))
        with pytest.raises(extconn.UnsupportedConnection, match="several engines"):
            task.configure(connection=db.session).defer()
        db.session.rollback()
    assert engines.jobs() == (1, 0)


def test_rows_and_jobs_match_where_one_commit_fails(engines: Engines, task: Any) -> None:
    """With rows on either engine and commits that fail on one, no job is without its row and no row without its job."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    taken = range(0, 200, 3)
    for engine, table in (engines.main, "orders"), (engines.other, "visits"):
        with engine.begin() as conn:
            # A second row of the same id fails at the commit, not before.
            conn.execute(sa.text(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey"))
            conn.execute(
                sa.text(f"ALTER TABLE {table} ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED")
            )
            conn.execute(sa.insert(sa.table(table, sa.column("id"))), [{"id": n} for n in taken])
    outcomes: Counter[str] = Counter()
    for number in range(200):
        with documented(engines)() as session:
            tables = rng.choice([[Order], [Visit], [Order, Visit]])
            steps = [partial(session.add, one(id=number)) for one in tables]
            steps.append(partial(task.configure(connection=session).defer, number=number))
            rng.shuffle(steps)
            try:
                for step in steps:
                    step()
                    if rng.random() < 0.3:
                        session.flush()
                session.commit()
                outcomes["committed"] += 1
            except extconn.UnsupportedConnection:
                outcomes["refused"] += 1
            except sa.exc.IntegrityError:
                outcomes["failed"] += 1
    assert {*outcomes} == {"committed", "refused", "failed"}
    with psycopg.connect(engines.dsns[0]) as main, psycopg.connect(engines.dsns[1]) as other:
        jobs = main.execute("SELECT (args->>'number')::int FROM procrastinate_jobs").fetchall()
        orders = main.execute("SELECT id FROM orders").fetchall()
        visits = other.execute("SELECT id FROM visits").fetchall()
    assert sorted(orders) == sorted(jobs + [(n,) for n in taken])
    assert sorted(visits) == [(n,) for n in taken]
    assert len(jobs) == outcomes["committed"]


# -- zope.sqlalchemy --------------------------------------------------------------------------------------------------


@pytest.fixture
def zope_session(engines: Engines) -> Iterator[Callable[..., Any]]:
    """Make a session of the transaction manager's."""
    zope = pytest.importorskip("zope.sqlalchemy")
    transaction = pytest.importorskip("transaction")
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Any:
            session = stack.enter_context(contextlib.closing(orm.Session(engines.main)))
            zope.register(session, **options)
            return session

        yield make
        transaction.abort()


OPTIONS = [{}, {"savepoint": True}, {"on_conflict": "existing"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_job_alone_is_committed_with_the_transaction(
    engines: Engines, zope_session: Callable[..., Any], task: Any, options: dict[str, Any]
) -> None:
    """A job without an ORM change is there after the commit, and gone after an abort."""
    import transaction

    conn = extconn.external(zope_session(), **options)
    task.configure(connection=conn).defer()
    transaction.abort()
    assert engines.jobs() == (0, 0)
    task.configure(connection=conn).defer()
    transaction.commit()
    assert engines.jobs() == (1, 0)


def test_a_read_only_session_is_refused(
    engines: Engines, zope_session: Callable[..., Any], task: Any
) -> None:
    """A session that was joined for reading alone cannot have a job, and says so."""
    session = zope_session(initial_state="readonly")
    with pytest.raises(ConnectorException):
        task.configure(connection=session).defer()
    assert engines.jobs() == (0, 0)
