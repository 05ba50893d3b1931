"""What the demo does on one server: orders and their jobs in one transaction, on every kind of connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import procrastinate
import psycopg
from procrastinate.jobs import Status

from ... import patching
from ...kinds import Held, Kind, done, run
from ...plugins import describe
from .workspace import Workspace

if TYPE_CHECKING:
    from typing_extensions import LiteralString


@dataclass
class Outcome:
    """What became of the two orders that were placed on one kind of connection."""

    kind: Kind
    name: str
    """What the connection is, such as ``"AsyncSession on asyncpg"``."""
    order_id: int
    """The committed order's; the order that was rolled back had the next number."""
    committed_together: bool = False
    """Order and job: neither could be seen before the commit, and both after it."""
    rolled_back_together: bool = False
    """Order and job: neither was there after the rollback."""
    run_by_worker: bool = False
    """The worker ran the committed job, once."""
    reason: str | None = None
    """Why something is not as it should be."""


class Surprise(Exception):
    """An order or its job is not as it should be."""


class Demonstration:
    """A shop whose orders are processed by jobs.

    :param workspace: where its tables go.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._dsn = workspace.address.dsn
        connector = procrastinate.PsycopgConnector(
            conninfo=self._dsn,
            # The server may be behind a pooler.
            kwargs={"prepare_threshold": None},
        )
        self._app = procrastinate.App(connector=connector)
        self._process_order = self._app.task(name="process_order")(self._process)
        self._processed: Callable[[], None] = lambda: None

    async def _process(self, order_id: int) -> None:
        await self._app.connector.execute_query_async(
            "UPDATE orders SET processed = processed + 1 WHERE id = %(order_id)s", order_id=order_id
        )
        self._processed()

    def prepare(self) -> str:
        """Create the tables, and let the app take any connection.

        :returns: what server it is, for people.
        """
        with self._app.open():
            self._app.schema_manager.apply_schema()
            self._app.connector.get_sync_connector().execute_query(
                "CREATE TABLE orders (id bigint PRIMARY KEY, processed int NOT NULL DEFAULT 0)"
            )
        # Whether a connection is in a transaction is what the demo is about to see.
        patching.install(outside_transaction="allow")
        [(version,)] = self._query("SHOW server_version")
        return f"PostgreSQL {version.split()[0]}, {self._workspace.what}"

    def place_orders(self, kinds: list[Kind]) -> Iterator[Outcome]:
        """Commit an order with its job, and roll back another, on one kind of connection after the other."""
        for number, kind in enumerate(kinds):
            outcome = Outcome(kind, kind.id, order_id=2 * number + 1)
            try:
                run(kind, self._dsn, partial(self._commit, outcome))
                run(kind, self._dsn, partial(self._roll_back, outcome))
            except Exception as exc:  # noqa: BLE001 - every error of a driver is shown, and the others go on
                outcome.reason = self._told(exc)
            yield outcome

    async def _commit(self, outcome: Outcome, held: Held) -> None:
        outcome.name = f"{type(held.conn).__name__} on {describe(held.conn).driver}"
        await self._place_order(held, outcome.kind, outcome.order_id)
        self._expect(outcome.order_id, there=False, when="before the commit")
        await done(held.commit())
        self._expect(outcome.order_id, there=True, when="after the commit")
        outcome.committed_together = True

    async def _roll_back(self, outcome: Outcome, held: Held) -> None:
        await self._place_order(held, outcome.kind, outcome.order_id + 1)
        await done(held.rollback())
        self._expect(outcome.order_id + 1, there=False, when="after the rollback")
        outcome.rolled_back_together = True

    async def _place_order(self, held: Held, kind: Kind, order_id: int) -> None:
        if self._workspace.schema:
            # Not every driver hands on the search_path of a DSN.
            await done(held.execute(f"SET LOCAL search_path = {self._workspace.schema}"))
        await done(held.execute(f"INSERT INTO orders (id) VALUES ({order_id:d})"))  # noqa: S608 - a number
        deferrer = self._process_order.configure(connection=held.conn)
        if kind.is_async:
            await deferrer.defer_async(order_id=order_id)
        else:
            deferrer.defer(order_id=order_id)

    def _expect(self, order_id: int, *, there: bool, when: str) -> None:
        """Look from another connection.

        :raises Surprise: if what is seen is not as it should be.
        """
        seen = self._query(
            "SELECT EXISTS (SELECT FROM orders WHERE id = %(order_id)s), "
            "EXISTS (SELECT FROM procrastinate_jobs WHERE (args->>'order_id')::bigint = %(order_id)s)",
            order_id=order_id,
        )
        if seen != [(there, there)]:
            order, job = ("there" if found else "not there" for found in seen[0])
            raise Surprise(f"{when}, the order was {order} and its job was {job}")

    def run_worker(self, outcomes: list[Outcome], processed: Callable[[], None]) -> None:
        """Let a worker of Procrastinate's run every job, then look at what it did.

        :param processed: called for each order.
        """
        self._processed = processed
        self._app.run_worker(wait=False, listen_notify=False, install_signal_handlers=False)
        for outcome in outcomes:
            if outcome.committed_together:
                found = self._query(
                    "SELECT status, processed FROM procrastinate_jobs JOIN orders "
                    "ON orders.id = (args->>'order_id')::bigint WHERE orders.id = %(order_id)s",
                    order_id=outcome.order_id,
                )
                outcome.run_by_worker = found == [(Status.SUCCEEDED.value, 1)]
                if not outcome.run_by_worker:
                    outcome.reason = f"after the worker, status and number of runs were {found}"

    def _query(self, query: LiteralString, **arguments: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._dsn) as conn:
            return conn.execute(query, arguments).fetchall()

    def _told(self, exc: Exception) -> str:
        text = exc if isinstance(exc, Surprise) else f"{type(exc).__name__}: {exc}"
        return self._workspace.address.harmless(str(text).strip())
