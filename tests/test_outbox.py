"""The job and the row go together: on every kind of connection, whichever connector the app uses."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import procrastinate
import pytest
from holding import Watch, hold, opened, opened_async, unopened

from procrastinate_extconn.kinds import Kind

_orders = itertools.count(1)


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test has an order of its own."""
    return new_database()


class Connector(NamedTuple):
    """What an app is made with."""

    name: str
    module: str
    requires: str
    arguments: Callable[[str], dict[str, Any]]
    opened: Callable[[procrastinate.App], AbstractContextManager[None]]


def _conninfo(dsn: str) -> dict[str, Any]:
    return {"conninfo": dsn, "min_size": 1}


def _url(dsn: str) -> dict[str, Any]:
    return {"dsn": dsn.replace("postgresql://", "postgresql+psycopg2://")}


def _dsn(dsn: str) -> dict[str, Any]:
    return {"dsn": dsn}


def _alias(dsn: str) -> dict[str, Any]:
    return {"alias": "default"}


CONNECTORS = [
    Connector("SyncPsycopgConnector", "procrastinate", "psycopg", _conninfo, opened),
    Connector("PsycopgConnector", "procrastinate", "psycopg", _conninfo, unopened),
    Connector("PsycopgConnector", "procrastinate", "psycopg", _conninfo, opened),
    Connector("PsycopgConnector", "procrastinate", "psycopg", _conninfo, opened_async),
    Connector(
        "SQLAlchemyPsycopg2Connector",
        "procrastinate.contrib.sqlalchemy",
        "sqlalchemy",
        _url,
        opened,
    ),
    Connector("Psycopg2Connector", "procrastinate.contrib.psycopg2", "psycopg2", _dsn, opened),
    Connector("AiopgConnector", "procrastinate.contrib.aiopg", "aiopg", _dsn, unopened),
    Connector("AiopgConnector", "procrastinate.contrib.aiopg", "aiopg", _dsn, opened_async),
    Connector(
        "DjangoConnector",
        "procrastinate.contrib.django.django_connector",
        "django",
        _alias,
        unopened,
    ),
]


@pytest.fixture(scope="module")
def installed() -> Iterator[None]:
    """The layer is on for the module."""
    import procrastinate_extconn

    procrastinate_extconn.install()
    yield
    procrastinate_extconn.uninstall()


@pytest.fixture(
    scope="module", params=CONNECTORS, ids=lambda one: f"{one.name}-{one.opened.__name__}"
)
def app(request: pytest.FixtureRequest, installed: None, dsn: str) -> Iterator[procrastinate.App]:
    """An app on each of Procrastinate's connectors, opened in each way that makes a difference."""
    connector: Connector = request.param
    pytest.importorskip(connector.requires)
    cls = getattr(importlib.import_module(connector.module), connector.name)
    app = procrastinate.App(connector=cls(**connector.arguments(dsn)))
    with connector.opened(app):
        yield app


@pytest.fixture(scope="module")
def task(app: procrastinate.App) -> Any:
    """A task that takes any arguments."""
    return app.task(name="process_order")(lambda **arguments: None)


def test_row_and_job_go_together(kind: Kind, dsn: str, task: Any, watch: Watch) -> None:
    """A commit keeps row and job, neither of which was visible before; a rollback takes both."""
    kept, dropped = next(_orders), next(_orders)
    with hold(kind, dsn) as external:
        external.execute(f"INSERT INTO orders VALUES ({kept})")
        kept_job = external.defer(task, order_id=kept)
        assert kept not in watch.orders()
        assert watch.job(kept_job) is None
        external.commit()
    with hold(kind, dsn) as external:
        external.execute(f"INSERT INTO orders VALUES ({dropped})")
        dropped_job = external.defer(task, order_id=dropped)
        external.rollback()
    assert kept in watch.orders()
    assert dropped not in watch.orders()
    assert watch.job(kept_job)["args"] == {"order_id": kept}
    assert watch.job(dropped_job) is None
