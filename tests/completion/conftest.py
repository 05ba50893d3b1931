"""What the tests of `complete` share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import procrastinate
import pytest
from completion.tasks import FEW, Body

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, run


@pytest.fixture(params=FEW, ids=lambda kind: kind.id)
def one_of_few(request: pytest.FixtureRequest) -> Kind:
    """A way to hold a transaction: sync and async, on a driver and through SQLAlchemy."""
    kind: Kind = request.param
    if missing := kind.missing():
        pytest.skip(f"not installed: {', '.join(missing)}")
    return kind


@pytest.fixture
async def app(installed: None, dsn: str) -> AsyncIterator[procrastinate.App]:
    """An app whose worker can run."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    async with app.open_async():
        yield app


@pytest.fixture
def define(app: procrastinate.App, dsn: str) -> Callable[..., Any]:
    """Define a task that runs a body on a connection of a kind; the task is async if the kind is."""

    def define(kind: Kind, body: Body, **options: Any) -> Any:
        if missing := kind.missing():
            pytest.skip(f"not installed: {', '.join(missing)}")
        if kind.is_async:

            @app.task(name="work", pass_context=True, **options)
            async def work_async(context: procrastinate.JobContext) -> None:
                async with kind.open(dsn) as held:
                    await body(context, held, extconn.complete_async)

            return work_async

        @app.task(name="work", pass_context=True, **options)
        def work(context: procrastinate.JobContext) -> None:
            async def on_held(held: Held) -> None:
                await body(context, held, extconn.complete)

            run(kind, dsn, on_held)

        return work

    return define


@pytest.fixture
def record(caplog: pytest.LogCaptureFixture) -> Callable[[str], logging.LogRecord]:
    """The one log record with an action."""

    def record(action: str) -> logging.LogRecord:
        [found] = [one for one in caplog.records if one.__dict__.get("action") == action]
        return found

    caplog.set_level(logging.INFO)
    return record
