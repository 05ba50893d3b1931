"""What is timed: each function makes a call on a connection that somebody holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from drivers import Holder
from procrastinate_side import DEFER, OURS, arguments, jobs, ready_made, without_layer

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector, wire
from procrastinate_extconn.queries import DEFER_ROWS

CHUNK = 1000


def defer(tasks: dict[bool, Any], holder: Holder) -> Callable[[], Any]:
    """Defer one job on *holder*'s connection, as a person does."""
    task, conn = tasks[holder.loop is not None], holder.conn
    if holder.loop is None:
        return lambda: task.configure(connection=conn).defer(**arguments(1))
    return lambda: task.configure(connection=conn).defer_async(**arguments(1))


def batch_defer(tasks: dict[bool, Any], holder: Holder, count: int) -> Callable[[], Any]:
    """Defer a batch on *holder*'s connection, as a person does."""
    task, conn = tasks[holder.loop is not None], holder.conn
    orders = [arguments(number) for number in range(count)]
    if holder.loop is None:
        return lambda: task.configure(connection=conn).batch_defer(*orders)
    return lambda: task.configure(connection=conn).batch_defer_async(*orders)


def layer(holder: Holder, count: int) -> Callable[[], Any]:
    """Defer jobs through the layer alone."""
    batch, conn = jobs(count), holder.conn
    if holder.loop is None:
        return lambda: ExternalConnector(conn).execute_query_all(DEFER, jobs=batch)
    return lambda: ExternalConnector(conn).execute_query_all_async(DEFER, jobs=batch)


def raw(holder: Holder, count: int) -> Callable[[], Any]:
    """Run the layer's statement by the driver alone, with a text that was made before."""
    query, text = ready_made(count)
    run = holder.raw(query)
    return lambda: run(jobs=text)


def raw_with_json(holder: Holder, count: int) -> Callable[[], Any]:
    """Run it by the driver alone, with a text that is made each time."""
    batch = jobs(count)
    run = holder.raw(ready_made(1)[0])
    return lambda: run(jobs=wire.encode_jobs(batch))


def no_layer(holder: Holder) -> dict[bool, Any]:
    """Tasks whose jobs go to the driver alone."""
    return without_layer(holder.raw(ready_made(1)[0]))


def defer_many(
    holder: Holder, count: int, rows: Iterable[dict[str, Any]] | None = None
) -> Callable[[], Any]:
    """Defer *count* jobs on *holder*'s connection, as a person does.

    :param rows: their arguments, if they were made before.
    """
    deferrer = OURS[holder.loop is not None].configure(connection=holder.conn)
    function = extconn.defer_many if holder.loop is None else extconn.defer_many_async
    return lambda: function(deferrer, rows or map(arguments, range(count)))


def raw_chunks(holder: Holder, count: int) -> Callable[[], Any]:
    """Run the statement of `defer_many` by the driver alone, with the text of a chunk that was made before."""
    assert DEFER_ROWS is not None
    run = holder.raw(wire.prepare(DEFER_ROWS).query)
    text = wire.encode_rows([arguments(number) for number in range(CHUNK)])
    common = wire.encode_jobs([jobs(1)[0]._replace(args={})])[1:-1]
    chunks = range(0, count, CHUNK)
    if holder.loop is None:
        return lambda: [run(common=common, rows=text) for _ in chunks]

    async def run_all() -> None:
        for _ in chunks:
            await run(common=common, rows=text)

    return run_all
