"""What the drivers' own tests share: a clean database, and a task of an app that takes any connection."""

from __future__ import annotations

from typing import Any

import procrastinate
import pytest

import procrastinate_extconn as extconn
from procrastinate_extconn.testing.contract.database import Database, shared_database


@pytest.fixture
def database(pytestconfig: pytest.Config) -> Database:
    """Empty the database that the contract is tried on."""
    return shared_database(pytestconfig)


@pytest.fixture
def dsn(database: Database) -> str:
    """Address that database."""
    return database.dsn


@pytest.fixture
def ship(dsn: str) -> Any:
    """Make a task of an app on Procrastinate's own connector."""
    app = extconn.patch(procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn)))

    @app.task(name="ship", queue="parcels")
    def ship(**task_kwargs: object) -> None:
        """Do nothing: no worker runs here."""

    return ship
