"""SQLAlchemy and SQLModel: connections and sessions, sync and async, on each dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from ..kinds import Held, Kind, address_of, done
from ..sync_async import finish

T = TypeVar("T")


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


def url(dsn: str, driver: str) -> Any:
    from sqlalchemy import URL

    address = address_of(dsn)
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
    engine = create_engine(url(dsn, driver), poolclass=NullPool)
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

    engine = create_async_engine(url(dsn, driver), poolclass=NullPool)
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


class _InGreenlet(Kind):
    @property
    def in_greenlet(self) -> bool:
        return True

    async def call(self, body: Callable[[Held], Coroutine[Any, Any, T]], held: Held) -> T:
        from sqlalchemy.util import greenlet_spawn

        result: T = await greenlet_spawn(lambda: finish(body(held)))
        return result


def _on_sqlalchemy(name: str, driver: str, hold: Callable[[Any], Any], *requires: str) -> Kind:
    opened = partial(_sqlalchemy, driver=driver, hold=hold)
    return Kind(name, "sqlalchemy", ("sqlalchemy", driver, *requires), False, opened)


def _on_sqlalchemy_async(name: str, driver: str, hold: Callable[[Any], Any]) -> Kind:
    opened = partial(_sqlalchemy_async, driver=driver, hold=hold)
    return Kind(name, "sqlalchemy", ("sqlalchemy", "greenlet", driver), True, opened)


def _in_run_sync(name: str, driver: str) -> Kind:
    opened = partial(_sqlalchemy_run_sync, driver=driver)
    requires = ("sqlalchemy", "greenlet", driver)
    return _InGreenlet(name, "sqlalchemy", requires, False, opened)


KINDS = (
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
)
