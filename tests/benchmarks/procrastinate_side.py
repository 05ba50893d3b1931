"""Procrastinate's side: the same jobs with the layer, and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import procrastinate
from comparing import Turn
from procrastinate import sql
from procrastinate.types import JobToDefer

import procrastinate_extconn
from procrastinate_extconn import wire

TASK = "shop.process_order"
DEFER: str = sql.queries["defer_jobs"]


def arguments(number: int) -> dict[str, Any]:
    """What an order's job gets: two hundred characters of JSON."""
    return {
        "order_id": number,
        "customer": {"name": "Zoë O'Reilly", "email": "zoe@example.org"},
        "items": [
            {"sku": "A-1", "count": 2},
            {"sku": "B-7", "count": 1},
            {"sku": "C-3", "count": 5},
        ],
        "express": True,
    }


def jobs(count: int) -> list[JobToDefer]:
    """Jobs as Procrastinate hands them to a connector."""
    return [
        JobToDefer("default", TASK, 0, None, None, arguments(number), None)
        for number in range(count)
    ]


def ready_made(count: int) -> tuple[str, str]:
    """The statement that the layer runs, and the text that it sends."""
    query, args = wire.encode(DEFER, {"jobs": jobs(count)})
    return query, str(args["jobs"])


procrastinate_extconn.install()


def not_installed(turn: Turn) -> Turn:
    """*turn* on Procrastinate as it is without the layer."""

    def run(calls: int) -> float:
        procrastinate_extconn.uninstall()
        try:
            return turn(calls)
        finally:
            procrastinate_extconn.install()

    return run


def task(connector: procrastinate.BaseConnector) -> Any:
    """Make an app's task."""
    app = procrastinate.App(connector=connector)

    @app.task(name=TASK)
    def process_order(**kwargs: Any) -> None:
        """Nobody runs it."""

    return process_order


OURS = {
    False: task(procrastinate.SyncPsycopgConnector()),
    True: task(procrastinate.PsycopgConnector()),
}


def without_layer(run: Callable[..., Any]) -> dict[bool, Any]:
    """Tasks whose jobs become a text that *run* sends: less than that, no layer can do."""

    class Connector(procrastinate.SyncPsycopgConnector):
        def execute_query_all_with_connection(
            self, connection: object, query: str, **arguments: Any
        ) -> list[dict[str, Any]]:
            return [{"id": row[0]} for row in run(jobs=wire.encode_jobs(arguments["jobs"]))]

    class AsyncConnector(procrastinate.PsycopgConnector):
        async def execute_query_all_async_with_connection(
            self, connection: object, query: str, **arguments: Any
        ) -> list[dict[str, Any]]:
            return [{"id": row[0]} for row in await run(jobs=wire.encode_jobs(arguments["jobs"]))]

    return {False: task(Connector()), True: task(AsyncConnector())}
