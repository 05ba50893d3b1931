"""Every kind of connection to PostgreSQL that the installed plugins name may stand in an outbox."""

from __future__ import annotations

import functools
import json
from typing import Any

import psycopg
import pytest
from procrastinate_extconn_outbox import Outbox
from sqlalchemy import URL

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run
from procrastinate_extconn.testing import deferred_jobs


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.id)
def test_rows_in_another_postgresql(kind: Kind, postgresql_url: URL, ship: Any) -> None:
    """The row is in the connection's transaction, with and without a savepoint, and can be looked at there."""
    if kind.missing():
        pytest.skip(f"not installed: {', '.join(kind.missing())}")
    dsn = postgresql_url.set(drivername="postgresql").render_as_string(hide_password=False)

    async def body(held: Held, *, commits: bool) -> None:
        outbox = extconn.external(Outbox(held.conn), outside_transaction="allow")
        for connection in (outbox, extconn.external(outbox, savepoint=True)):
            call = ship.configure(connection=connection)
            is_async = extconn.describe(outbox).is_async
            defer = call.batch_defer_async if is_async else call.batch_defer
            args = {"commits": commits, "text": "%s :x é"}
            assert await done(defer(args, {**args, "n": 2})) == [-1, -1]
        assert len(await done(deferred_jobs(outbox))) == 4
        await done(held.commit() if commits else held.rollback())

    for commits in (False, True):
        run(kind, dsn, functools.partial(body, commits=commits))
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT jobs FROM procrastinate_outbox").fetchall()
    assert len(rows) == 2
    assert all(job["args"]["commits"] for (jobs,) in rows for job in json.loads(jobs))
