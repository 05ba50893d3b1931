"""Every way to hold an open PostgreSQL transaction that this project supports: for the demo, the doctor and the tests.

One function for each way, which opens a connection as its own documentation says; the table is at the end.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

from .drivers import rows

T = TypeVar("T")


class Held(NamedTuple):
    """A connection that somebody holds, in a transaction, with its driver's own way to do things.

    What these functions return is awaited where the connection is asynchronous; `done` does both.
    """

    conn: Any
    """What is passed as ``connection=``."""
    execute: Callable[[str], Any]
    """Runs SQL without parameters and returns the rows as tuples, none where the statement has none."""
    commit: Callable[[], Any]
    rollback: Callable[[], Any]


class Kind(NamedTuple):
    """A way to hold a transaction."""

    id: str
    plugin: str
    """The plugin that takes the connection."""
    requires: tuple[str, ...]
    """The modules that it needs, the plugin's own among them."""
    is_async: bool
    """Whether what is done on the connection is awaited."""
    open: Callable[[str], Any]
    """DSN -> a context manager that yields a `Held`, and closes what it opened; asynchronous if `is_async`."""
    in_greenlet: bool = False
    """Whether the connection is the synchronous inside of an asynchronous one, which works in SQLAlchemy's
    ``run_sync`` alone. `open` is asynchronous then although `is_async` is false; `run` knows."""

    def missing(self) -> list[str]:
        """Those of the modules in `requires` that are not installed."""
        return [name for name in self.requires if find_spec(name) is None]


def run(kind: Kind, dsn: str, body: Callable[[Held], Coroutine[Any, Any, T]]) -> T:
    """Run *body* on a connection of this kind, as a person's program would.

    :param body: an ``async def`` for every kind. Where the kind is synchronous there is no event loop, so it may
        await nothing but `done`.
    """
    if not (kind.is_async or kind.in_greenlet):
        with kind.open(dsn) as held:
            return _drive(body(held))

    async def main() -> T:
        async with kind.open(dsn) as held:
            if not kind.in_greenlet:
                return await body(held)
            from sqlalchemy.util import greenlet_spawn

            return await greenlet_spawn(lambda: _drive(body(held)))

    return asyncio.run(main())


async def done(value: Any) -> Any:
    """*value*, awaited if it needs to be."""
    return await value if inspect.isawaitable(value) else value


def _drive(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a body that runs without an event loop waited for something")


def _address(dsn: str) -> dict[str, Any]:
    """Where *dsn* leads, in the words of most drivers: host, port, user, password, database."""
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.pq import Conninfo

    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in Conninfo.get_defaults()
        if option.val
    }
    found: dict[str, Any] = {"host": "localhost", "password": None, **defaults}
    found.update(conninfo_to_dict(dsn))
    return {
        "host": found["host"],
        "port": int(found["port"]),
        "user": found["user"],
        "password": found["password"],
        "database": found.get("dbname") or found["user"],
    }


def _dbapi(conn: Any) -> Held:
    def execute(sql: str) -> list[tuple[Any, ...]]:
        with closing(conn.cursor()) as cursor:
            cursor.execute(sql)
            return _tuples(cursor.description, cursor.fetchall)

    return Held(conn, execute, conn.commit, conn.rollback)


def _tuples(description: Any, fetched: Callable[[], Any]) -> list[tuple[Any, ...]]:
    """What a cursor fetches, also where somebody's row or cursor factory makes dicts of rows."""
    return [tuple(row.values()) for row in rows(description, fetched)]


# -- psycopg ----------------------------------------------------------------------------------------------------------


@contextmanager
def _psycopg(dsn: str) -> Generator[Held]:
    import psycopg

    with closing(psycopg.connect(dsn)) as conn:
        yield _dbapi(conn)


@contextmanager
def _psycopg_pool(dsn: str) -> Generator[Held]:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(dsn, min_size=1, open=True) as pool, pool.connection() as conn:
        yield _dbapi(conn)
        if not conn.closed:
            conn.rollback()  # The pool would commit what was left undecided.


def _psycopg_held(conn: Any) -> Held:
    async def execute(sql: str) -> list[tuple[Any, ...]]:
        async with conn.cursor() as cursor:
            await cursor.execute(sql)
            fetched: list[Any] = await cursor.fetchall() if cursor.description else []
            return _tuples(cursor.description, lambda: fetched)

    return Held(conn, execute, conn.commit, conn.rollback)


@asynccontextmanager
async def _psycopg_async(dsn: str) -> AsyncGenerator[Held]:
    import psycopg

    conn = await psycopg.AsyncConnection.connect(dsn)
    try:
        yield _psycopg_held(conn)
    finally:
        await conn.close()


@asynccontextmanager
async def _psycopg_async_pool(dsn: str) -> AsyncGenerator[Held]:
    from psycopg_pool import AsyncConnectionPool

    async with (
        AsyncConnectionPool(dsn, min_size=1, open=False) as pool,
        pool.connection() as conn,
    ):
        yield _psycopg_held(conn)
        if not conn.closed:
            await conn.rollback()


# -- SQLAlchemy -------------------------------------------------------------------------------------------------------


def _connection(engine: Any) -> Any:
    return engine.connect()


def _session(engine: Any) -> Any:
    from sqlalchemy.orm import Session

    return Session(engine)


def _scoped_session(engine: Any) -> Any:
    from sqlalchemy.orm import scoped_session, sessionmaker

    return scoped_session(sessionmaker(engine))


def _sqlmodel_session(engine: Any) -> Any:
    from sqlmodel import Session

    return Session(engine)


def _async_session(engine: Any) -> Any:
    from sqlalchemy.ext.asyncio import AsyncSession

    return AsyncSession(engine)


def _async_scoped_session(engine: Any) -> Any:
    from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

    return async_scoped_session(async_sessionmaker(engine), asyncio.current_task)


def _url(dsn: str, driver: str) -> Any:
    from sqlalchemy import URL

    address = _address(dsn)
    return URL.create(f"postgresql+{driver}", username=address.pop("user"), **address)


def _sqlalchemy_held(target: Any) -> Held:
    from sqlalchemy import text

    def execute(sql: str) -> list[tuple[Any, ...]]:
        result = target.execute(text(sql.replace(":", r"\:")))
        return list(map(tuple, result)) if result.returns_rows else []

    return Held(target, execute, target.commit, target.rollback)


@contextmanager
def _sqlalchemy(dsn: str, driver: str, hold: Callable[[Any], Any]) -> Generator[Held]:
    from sqlalchemy import NullPool, create_engine

    # A pool would outlive its disposal in a session that is used after it was closed.
    engine = create_engine(_url(dsn, driver), poolclass=NullPool)
    try:
        with closing(hold(engine)) as target:
            yield _sqlalchemy_held(target)
    finally:
        engine.dispose()


@asynccontextmanager
async def _sqlalchemy_async(
    dsn: str, driver: str, hold: Callable[[Any], Any]
) -> AsyncGenerator[Held]:
    from sqlalchemy import NullPool, text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(_url(dsn, driver), poolclass=NullPool)
    target = await done(hold(engine))

    async def execute(sql: str) -> list[tuple[Any, ...]]:
        result = await target.execute(text(sql.replace(":", r"\:")))
        return list(map(tuple, result)) if result.returns_rows else []

    try:
        yield Held(target, execute, target.commit, target.rollback)
    finally:
        await target.close()
        await engine.dispose()


@asynccontextmanager
async def _sqlalchemy_run_sync(dsn: str, driver: str) -> AsyncGenerator[Held]:
    async with _sqlalchemy_async(dsn, driver, _async_session) as held:
        yield _sqlalchemy_held(held.conn.sync_session)


# -- asyncpg ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _asyncpg_transaction(conn: Any) -> AsyncGenerator[Held]:
    async def execute(sql: str) -> list[tuple[Any, ...]]:
        return list(map(tuple, await conn.fetch(sql)))

    transaction = conn.transaction()
    await transaction.start()
    try:
        yield Held(conn, execute, transaction.commit, transaction.rollback)
    finally:
        if not conn.is_closed() and conn.is_in_transaction():
            await transaction.rollback()


@asynccontextmanager
async def _asyncpg(dsn: str) -> AsyncGenerator[Held]:
    asyncpg = import_module("asyncpg")
    conn = await asyncpg.connect(**_address(dsn))
    try:
        async with _asyncpg_transaction(conn) as held:
            yield held
    finally:
        await conn.close()


@asynccontextmanager
async def _asyncpg_pool(dsn: str) -> AsyncGenerator[Held]:
    asyncpg = import_module("asyncpg")
    pool = asyncpg.create_pool(**_address(dsn), min_size=1)
    async with pool, pool.acquire() as conn, _asyncpg_transaction(conn) as held:
        yield held


# -- other drivers ----------------------------------------------------------------------------------------------------


@contextmanager
def _psycopg2(dsn: str) -> Generator[Held]:
    import psycopg2

    with closing(psycopg2.connect(dsn)) as conn:
        yield _dbapi(conn)


@asynccontextmanager
async def _aiopg(dsn: str) -> AsyncGenerator[Held]:
    import aiopg

    conn: Any
    async with aiopg.connect(dsn) as conn:

        async def execute(sql: str) -> list[tuple[Any, ...]]:
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
                return await cursor.fetchall() if cursor.description else []

        await execute("BEGIN")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


@contextmanager
def _pg8000(dsn: str) -> Generator[Held]:
    with closing(import_module("pg8000.dbapi").connect(**_address(dsn))) as conn:
        yield _dbapi(conn)


@contextmanager
def _pg8000_native(dsn: str) -> Generator[Held]:
    with closing(import_module("pg8000.native").Connection(**_address(dsn))) as conn:

        def execute(sql: str) -> list[tuple[Any, ...]]:
            return list(map(tuple, conn.run(sql) or ()))

        execute("START TRANSACTION")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


@asynccontextmanager
async def _psqlpy_connection(dsn: str) -> AsyncGenerator[Any]:
    import psqlpy

    address = _address(dsn)
    conn = await psqlpy.connect(
        username=address.pop("user"), db_name=address.pop("database"), **address
    )
    try:
        yield conn
    finally:
        conn.close()


async def _psqlpy_execute(conn: Any, sql: str) -> list[tuple[Any, ...]]:
    result = await conn.execute(sql)
    return [tuple(row.values()) for row in result.result()]


@asynccontextmanager
async def _psqlpy(dsn: str) -> AsyncGenerator[Held]:
    async with _psqlpy_connection(dsn) as conn:
        execute = partial(_psqlpy_execute, conn)
        await execute("BEGIN")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


@asynccontextmanager
async def _psqlpy_transaction(dsn: str) -> AsyncGenerator[Held]:
    async with _psqlpy_connection(dsn) as conn:
        transaction = conn.transaction()
        await transaction.begin()
        execute = partial(_psqlpy_execute, transaction)
        yield Held(transaction, execute, transaction.commit, transaction.rollback)


# -- frameworks -------------------------------------------------------------------------------------------------------

_aliases = itertools.count(1)


@contextmanager
def _django(dsn: str) -> Generator[Held]:
    settings = import_module("django.conf").settings
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        import_module("django").setup()
    django_db = import_module("django.db")
    connections: Any = django_db.connections
    alias = f"held-{next(_aliases)}"
    address = _address(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address.pop("database"),
        **{name.upper(): value for name, value in address.items()},
    }
    complete = type(connections)({"default": database})
    connections.databases[alias] = complete.databases["default"]
    conn = connections[alias]

    def end(*, rollback: bool) -> None:
        if rollback:
            conn.set_rollback(True)
        atomic.__exit__(None, None, None)

    try:
        atomic = django_db.transaction.atomic(using=alias)
        atomic.__enter__()
        held = _dbapi(conn)
        yield held._replace(
            commit=partial(end, rollback=False), rollback=partial(end, rollback=True)
        )
        if conn.in_atomic_block:
            end(rollback=True)
    finally:
        conn.close()
        del connections[alias], connections.databases[alias]


@asynccontextmanager
async def _tortoise(dsn: str, driver: str) -> AsyncGenerator[Held]:
    from tortoise import Tortoise
    from tortoise.transactions import in_transaction

    database = {"engine": f"tortoise.backends.{driver}", "credentials": _address(dsn)}
    with warnings.catch_warnings():
        # It wants a module with models, and warns of one without.
        warnings.simplefilter("ignore", RuntimeWarning)
        await Tortoise.init(
            config={"connections": {"default": database}, "apps": {"none": {"models": [__name__]}}}
        )
    conn: Any
    try:
        async with in_transaction("default") as conn:

            async def execute(sql: str) -> list[tuple[Any, ...]]:
                return [tuple(row.values()) for row in await conn.execute_query_dict(sql)]

            yield Held(conn, execute, conn.commit, conn.rollback)
            if not conn._finalized:
                await conn.rollback()
    finally:
        await Tortoise.close_connections()


@asynccontextmanager
async def _piccolo(dsn: str) -> AsyncGenerator[Held]:
    engine = import_module("piccolo.engine.postgres").PostgresEngine(_address(dsn))
    async with engine.transaction() as transaction:

        async def execute(sql: str) -> list[tuple[Any, ...]]:
            return list(map(tuple, await transaction.connection.fetch(sql)))

        yield Held(transaction, execute, transaction.commit, transaction.rollback)
        if transaction.connection.is_in_transaction():
            await transaction.rollback()


@contextmanager
def _peewee(dsn: str, prefer_psycopg3: bool) -> Generator[Held]:
    from peewee import PostgresqlDatabase

    database: Any = PostgresqlDatabase(**_address(dsn), prefer_psycopg3=prefer_psycopg3)
    with database.connection_context():
        database.session_start()

        def execute(sql: str) -> list[tuple[Any, ...]]:
            cursor = database.execute_sql(sql)
            return cursor.fetchall() if cursor.description else []

        try:
            yield Held(database, execute, database.session_commit, database.session_rollback)
        finally:
            database.session_rollback()


# -- the table --------------------------------------------------------------------------------------------------------


def _on_sqlalchemy(name: str, driver: str, hold: Callable[[Any], Any], *requires: str) -> Kind:
    opened = partial(_sqlalchemy, driver=driver, hold=hold)
    return Kind(name, "sqlalchemy", ("sqlalchemy", driver, *requires), False, opened)


def _on_sqlalchemy_async(name: str, driver: str, hold: Callable[[Any], Any]) -> Kind:
    opened = partial(_sqlalchemy_async, driver=driver, hold=hold)
    return Kind(name, "sqlalchemy", ("sqlalchemy", "greenlet", driver), True, opened)


def _in_run_sync(name: str, driver: str) -> Kind:
    opened = partial(_sqlalchemy_run_sync, driver=driver)
    requires = ("sqlalchemy", "greenlet", driver)
    return Kind(name, "sqlalchemy", requires, False, opened, in_greenlet=True)


def _with_plugin(
    name: str, plugin: str, is_async: bool, opened: Callable[[str], Any], *requires: str
) -> Kind:
    return Kind(name, plugin, (*requires, f"procrastinate_extconn_{plugin}"), is_async, opened)


_ASYNCPG = ("asyncpg", "procrastinate_extconn_asyncpg")

KINDS: tuple[Kind, ...] = (
    Kind("psycopg", "psycopg", ("psycopg",), False, _psycopg),
    Kind("psycopg-pool", "psycopg", ("psycopg", "psycopg_pool"), False, _psycopg_pool),
    Kind("psycopg-async", "psycopg", ("psycopg",), True, _psycopg_async),
    Kind("psycopg-async-pool", "psycopg", ("psycopg", "psycopg_pool"), True, _psycopg_async_pool),
    _on_sqlalchemy("sqlalchemy-connection-psycopg", "psycopg", _connection),
    _on_sqlalchemy("sqlalchemy-connection-psycopg2", "psycopg2", _connection),
    _on_sqlalchemy("sqlalchemy-connection-pg8000", "pg8000", _connection),
    _on_sqlalchemy("sqlalchemy-session-psycopg", "psycopg", _session),
    _on_sqlalchemy("sqlalchemy-session-psycopg2", "psycopg2", _session),
    _on_sqlalchemy("sqlalchemy-scoped-session", "psycopg", _scoped_session),
    _on_sqlalchemy("sqlmodel-session", "psycopg", _sqlmodel_session, "sqlmodel"),
    _on_sqlalchemy_async("sqlalchemy-async-connection-psycopg", "psycopg", _connection),
    _on_sqlalchemy_async("sqlalchemy-async-connection-asyncpg", "asyncpg", _connection),
    _on_sqlalchemy_async("sqlalchemy-async-session-psycopg", "psycopg", _async_session),
    _on_sqlalchemy_async("sqlalchemy-async-session-asyncpg", "asyncpg", _async_session),
    _on_sqlalchemy_async("sqlalchemy-async-scoped-session", "psycopg", _async_scoped_session),
    _in_run_sync("sqlalchemy-run-sync-psycopg", "psycopg"),
    _in_run_sync("sqlalchemy-run-sync-asyncpg", "asyncpg"),
    _with_plugin("asyncpg", "asyncpg", True, _asyncpg, "asyncpg"),
    _with_plugin("asyncpg-pool", "asyncpg", True, _asyncpg_pool, "asyncpg"),
    _with_plugin("psycopg2", "psycopg2", False, _psycopg2, "psycopg2"),
    _with_plugin("aiopg", "aiopg", True, _aiopg, "aiopg"),
    _with_plugin("pg8000", "pg8000", False, _pg8000, "pg8000"),
    _with_plugin("pg8000-native", "pg8000", False, _pg8000_native, "pg8000"),
    _with_plugin("psqlpy", "psqlpy", True, _psqlpy, "psqlpy"),
    _with_plugin("psqlpy-transaction", "psqlpy", True, _psqlpy_transaction, "psqlpy"),
    _with_plugin("django", "django", False, _django, "django"),
    _with_plugin(
        "tortoise-asyncpg",
        "tortoise",
        True,
        partial(_tortoise, driver="asyncpg"),
        "tortoise",
        *_ASYNCPG,
    ),
    _with_plugin(
        "tortoise-psycopg",
        "tortoise",
        True,
        partial(_tortoise, driver="psycopg"),
        "tortoise",
        "psycopg",
    ),
    _with_plugin("piccolo", "piccolo", True, _piccolo, "piccolo", *_ASYNCPG),
    _with_plugin(
        "peewee-psycopg2",
        "peewee",
        False,
        partial(_peewee, prefer_psycopg3=False),
        "peewee",
        "psycopg2",
    ),
    _with_plugin(
        "peewee-psycopg",
        "peewee",
        False,
        partial(_peewee, prefer_psycopg3=True),
        "peewee",
        "psycopg",
    ),
)
"""Every way to hold a transaction; `Kind.missing` says which of them this machine can show."""


def kinds_of(plugin: str) -> tuple[Kind, ...]:
    """Every way to hold a connection that *plugin* takes."""
    return tuple(kind for kind in KINDS if kind.plugin == plugin)
