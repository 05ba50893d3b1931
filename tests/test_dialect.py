"""A connection to another database is described, and refused in one place, whichever library it is from."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from holding import External, _installed, hold

import procrastinate_extconn as extconn
from procrastinate_extconn.drivers import describe_held
from procrastinate_extconn.kinds import Held, Kind

# Each opens a connection to SQLite in the file, as that library's users do.


@contextmanager
def sqlalchemy_connection(file: Path) -> Iterator[Any]:
    """A `sqlalchemy.Connection`."""
    sa = import_module("sqlalchemy")
    engine = sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool)
    with engine.connect() as conn:
        yield conn


@contextmanager
def sqlalchemy_session(file: Path) -> Iterator[Any]:
    """A `sqlalchemy.orm.Session`."""
    sa = import_module("sqlalchemy")
    orm = import_module("sqlalchemy.orm")
    with orm.Session(sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool)) as session:
        yield session


@asynccontextmanager
async def sqlalchemy_async(file: Path) -> AsyncIterator[Any]:
    """An `AsyncConnection`."""
    asyncio_ = import_module("sqlalchemy.ext.asyncio")
    engine = asyncio_.create_async_engine(f"sqlite+aiosqlite:///{file}")
    async with engine.begin() as conn:
        yield conn
    await engine.dispose()


@contextmanager
def django(file: Path) -> Iterator[Any]:
    """A connection from ``connections[alias]``."""
    settings = import_module("django.conf").settings
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        import_module("django").setup()
    utils = import_module("django.db.utils")
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}
    with contextlib.closing(utils.ConnectionHandler({"default": database})["default"]) as conn:
        yield conn


@contextmanager
def peewee(file: Path) -> Iterator[Any]:
    """A `peewee.SqliteDatabase` in ``atomic()``."""
    peewee = import_module("peewee")
    database = peewee.SqliteDatabase(str(file))
    with database.atomic():
        yield database
    database.close()


@asynccontextmanager
async def tortoise(file: Path) -> AsyncIterator[Any]:
    """What Tortoise's ``in_transaction()`` gives."""
    tortoise = import_module("tortoise")
    transactions = import_module("tortoise.transactions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that there are no models
        await tortoise.Tortoise.init(db_url=f"sqlite://{file}", modules={"none": [__name__]})
    async with transactions.in_transaction() as conn:
        yield conn
    await tortoise.Tortoise.close_connections()


@asynccontextmanager
async def piccolo(file: Path) -> AsyncIterator[Any]:
    """What the ``transaction()`` of a `SQLiteEngine` gives."""
    sqlite = import_module("piccolo.engine.sqlite")
    async with sqlite.SQLiteEngine(str(file)).transaction() as transaction:
        yield transaction


OPENERS: dict[Callable[[Path], Any], tuple[str, ...]] = {
    sqlalchemy_connection: ("sqlalchemy",),
    sqlalchemy_session: ("sqlalchemy",),
    sqlalchemy_async: ("sqlalchemy", "aiosqlite"),
    django: ("django", "procrastinate_extconn_django"),
    peewee: ("peewee", "procrastinate_extconn_peewee"),
    tortoise: ("tortoise", "procrastinate_extconn_tortoise"),
    piccolo: ("piccolo", "aiosqlite", "procrastinate_extconn_piccolo"),
}
"""The modules that each needs."""


def held(opener: Callable[[Path], Any], file: Path) -> contextlib.AbstractContextManager[External]:
    """A connection from *opener*, held as those to PostgreSQL are."""
    is_async = inspect.isasyncgenfunction(inspect.unwrap(opener))

    @asynccontextmanager
    async def opened_async(name: str) -> AsyncIterator[Held]:
        async with opener(Path(name)) as conn:
            yield Held(conn, *[lambda *_: None] * 3)

    @contextmanager
    def opened(name: str) -> Iterator[Held]:
        with opener(Path(name)) as conn:
            yield Held(conn, *[lambda *_: None] * 3)

    opens: Any = opened_async if is_async else opened
    kind = Kind(opener.__name__, opener.__name__, OPENERS[opener], is_async, opens)
    return hold(_installed(kind), str(file))


@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_sqlite_is_described_and_refused(
    opener: Callable[[Path], Any], tmp_path: Path, task: Any
) -> None:
    """`describe` says which database it is; deferring and `using` refuse it by that name, in the same words."""
    with held(opener, tmp_path / "small.sqlite") as external:
        conn = external.conn
        description = external.run(lambda: extconn.describe(conn))
        assert description.dialect == "sqlite"
        assert description.is_async is external.kind.is_async
        assert external.run(lambda: describe_held(conn)) == description

        def enter(given: object) -> None:
            with extconn.using(given):
                pytest.fail("the block was entered")

        texts = set()
        for attempt in (
            lambda: external.defer(task),
            lambda: external.run(lambda: enter(conn)),
            lambda: external.run(lambda: enter(extconn.external(conn, savepoint=True))),
        ):
            with pytest.raises(extconn.UnsupportedConnection) as caught:
                attempt()
            texts.add(str(caught.value))
        [text] = texts
        assert "does not support external connections to sqlite" in text
        cls = type(conn)
        assert f"this {cls.__module__}.{cls.__qualname__} is not bound to PostgreSQL" in text


def test_only_postgresql_is_spelt_so(external: External) -> None:
    """Every kind of connection that this project supports is to PostgreSQL."""
    assert external.run(lambda: extconn.describe(external.conn)).dialect == "postgresql"
