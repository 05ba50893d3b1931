"""An async driver that stands for yours. It has ``$1`` in a query, and no transaction but where one was begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier


class ServerError(Exception):
    """What the server said, by names of this driver."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__(fields["text"])
        self.fields = fields


class Record(Mapping[str, Any]):
    """A row."""

    def __init__(self, names: list[str], values: tuple[Any, ...]) -> None:
        self._values = dict(zip(names, values, strict=True))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Connection:
    """A connection to PostgreSQL."""

    def __init__(self, raw: psycopg.AsyncConnection[Any]) -> None:
        self._raw = raw
        self._socket = raw.fileno()
        self._busy = asyncio.Lock()
        self._notified: Callable[[str, str], None] | None = None
        self._lost: Callable[[], None] | None = None
        raw.add_notify_handler(self._pass_on)

    @property
    def closed(self) -> bool:
        """Whether nothing can be run any more."""
        return self._raw.closed

    @property
    def status(self) -> str:
        """The server's status of the transaction: I, T or E, as in its protocol."""
        return {0: "I", 3: "E"}.get(self._raw.info.transaction_status, "T")

    async def fetch(self, query: str, *values: Any) -> list[Record]:
        """Run a query and return its rows."""
        names, found = await self._run(query, values)
        return [Record(names, row) for row in found]

    async def fetch_tuples(self, query: str) -> list[tuple[Any, ...]]:
        """Run a query and return its rows as tuples."""
        _, found = await self._run(query, ())
        return found

    async def _run(
        self, query: str, values: tuple[Any, ...]
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        async with self._busy:
            self._watch(False)
            try:
                cursor = psycopg.AsyncRawCursor(self._raw)
                await cursor.execute(query.encode(), values or None)
                if cursor.description is None:
                    return [], []
                return [column.name for column in cursor.description], await cursor.fetchall()
            except psycopg.Error as exc:
                diag = exc.diag
                raise ServerError(
                    {
                        "text": diag.message_primary or str(exc),
                        **({"code": exc.sqlstate} if exc.sqlstate else {}),
                        **({"detail": diag.message_detail} if diag.message_detail else {}),
                        **({"constraint": diag.constraint_name} if diag.constraint_name else {}),
                    }
                ) from None
            finally:
                self._watch(True)

    async def begin(self) -> None:
        """Begin a transaction."""
        await self.fetch("BEGIN")

    async def commit(self) -> None:
        """Commit the transaction."""
        await self.fetch("COMMIT")

    async def rollback(self) -> None:
        """Roll the transaction back."""
        await self.fetch("ROLLBACK")

    async def close(self) -> None:
        """Close, and roll back."""
        self._watch(False)
        await self._raw.close()

    # -- notifications ------------------------------------------------------------------------------------------------

    async def listen(self, channel: str) -> None:
        """Listen on a channel."""
        await self.fetch(SQL("LISTEN {}").format(Identifier(channel)).as_string())

    async def unlisten(self) -> None:
        """Listen no more."""
        if not self.closed:
            await self.fetch("UNLISTEN *")

    def on_notification(self, call: Callable[[str, str], None] | None) -> None:
        """Call *call* with the channel and payload of each notification."""
        self._notified = call

    def on_loss(self, call: Callable[[], None] | None) -> None:
        """Call *call* when the connection is lost."""
        self._lost = call

    def _pass_on(self, notify: psycopg.Notify) -> None:
        if self._notified:
            self._notified(notify.channel, notify.payload)

    def _watch(self, watching: bool) -> None:
        """Read from the socket between queries, or leave it to a query."""
        if not self._raw.closed:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            if watching:
                loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            self._raw.pgconn.consume_input()
            while notify := self._raw.pgconn.notifies():
                self._pass_on(
                    psycopg.Notify(notify.relname.decode(), notify.extra.decode(), notify.be_pid)
                )
        except psycopg.Error:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._raw.pgconn.finish()
            if self._lost:
                self._lost()


class Pool:
    """Connections that are opened when they are needed, three at most."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._free: list[Connection] = []
        self._places = asyncio.Semaphore(3)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *exc: object) -> None:
        while self._free:
            await self._free.pop().close()

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[Connection]:
        """Take a connection, and give it back without a transaction."""
        async with self._places:
            conn = self._free.pop() if self._free else await connect(self._dsn)
            try:
                yield conn
            finally:
                if not conn.closed and conn.status != "I":
                    await conn.rollback()
                if not conn.closed:
                    self._free.append(conn)


async def connect(dsn: str) -> Connection:
    """Connect to a database."""
    return Connection(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
