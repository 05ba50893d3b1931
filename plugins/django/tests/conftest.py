"""Django without a project: a connection to the test's database, on each of the drivers that Django runs on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import django
import pytest
from django.conf import settings
from django.db import connections
from django.db.utils import ConnectionHandler

BACKEND = "django.db.backends.postgresql"


@pytest.fixture(scope="session", params=["psycopg", "psycopg2"])
def driver(request: pytest.FixtureRequest) -> str:
    """Name each driver, once Django is ready."""
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        django.setup()
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def engine(driver: str) -> str:
    """Name the backend on that driver. Django's own takes psycopg wherever it is, and Procrastinate needs that."""
    if driver == "psycopg":
        return BACKEND
    importlib.import_module(f"{BACKEND}.base")
    on_psycopg = {name: None for name in sys.modules if name.split(".")[0] == "psycopg"}
    others = {name: module for name, module in sys.modules.items() if BACKEND not in name}
    with mock.patch.dict(sys.modules, {**others, **on_psycopg}, clear=True):
        base = importlib.import_module(f"{BACKEND}.base")
    sys.modules["on_psycopg2"] = sys.modules["on_psycopg2.base"] = base
    return "on_psycopg2"


@pytest.fixture
def options() -> dict[str, Any]:
    """Give no settings of the database besides its address: a test may."""
    return {}


@pytest.fixture
def connection(dsn: str, engine: str, options: dict[str, Any]) -> Iterator[Any]:
    """Make the test's database Django's default one, and give its connection."""
    address = urlsplit(dsn)
    database = {
        "ENGINE": engine,
        "HOST": address.hostname,
        "PORT": address.port,
        "USER": address.username,
        "PASSWORD": address.password or "",
        "NAME": address.path.strip("/"),
        **options,
    }
    with mock.patch.dict(connections.databases, ConnectionHandler({"default": database}).databases):
        before = connections["default"] if hasattr(connections._connections, "default") else None
        connections["default"] = connections.create_connection("default")
        yield connections["default"]
        connections["default"].close()
        del connections["default"]
        if before is not None:
            connections["default"] = before
