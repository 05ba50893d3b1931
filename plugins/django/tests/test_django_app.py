"""``INSTALLED_APPS = [..., "procrastinate_extconn_django"]``: what it installs, and what its checks tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db.utils import ConnectionHandler
from django.test import override_settings

from procrastinate_extconn.testing.contract.database import Database

pytestmark = [
    pytest.mark.usefixtures("driver"),
    pytest.mark.parametrize("driver", ["psycopg"], indirect=True),
]


def manage(tmp_path: Path, *command: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command of Django's in a project with these settings, in a process of its own."""
    module = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    (tmp_path / "project_settings.py").write_text(module)
    env = {"PYTHONPATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "project_settings"}
    return subprocess.run(
        [sys.executable, "-m", "django", *command],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


PLACE = """
from django.db import connection, transaction
from procrastinate.contrib.django import app

for order in (1, 2):
    with transaction.atomic():
        connection.cursor().execute("INSERT INTO orders VALUES (%s)", [order])
        app.configure_task("ship", connection=connection).defer(order=order)
        transaction.set_rollback(order == 2)

app.configure_task("ship", connection=connection).defer(order=3)
"""


def test_project(tmp_path: Path, connection: Any, database: Database) -> None:
    """Beside Procrastinate's own Django app, its app takes Django's connection, under the setting's rule."""
    ran = manage(
        tmp_path,
        "shell",
        "-c",
        PLACE,
        INSTALLED_APPS=["procrastinate.contrib.django", "procrastinate_extconn_django"],
        DATABASES={"default": connection.settings_dict},
        PROCRASTINATE_EXTCONN={"OUTSIDE_TRANSACTION": "error"},
    )
    assert "OutsideTransaction: this psycopg connection is not in a transaction" in ran.stderr
    assert [json.loads(job["args"]) for job in database.jobs()] == [{"order": 1}]
    assert database.value("SELECT array_agg(id) FROM orders") == [1]


def test_check_command(tmp_path: Path) -> None:
    """A project with a wrong setting starts, so that Django's own check command can tell."""
    ran = manage(
        tmp_path,
        "check",
        INSTALLED_APPS=["procrastinate_extconn_django"],
        PROCRASTINATE_EXTCONN={"OUTSIDE_TRANSACTION": "eror"},
    )
    assert ran.returncode == 1
    assert (
        "(procrastinate_extconn.E003) PROCRASTINATE_EXTCONN['OUTSIDE_TRANSACTION'] has no value "
        """'eror'.\n\tHINT: PROCRASTINATE_EXTCONN = {"OUTSIDE_TRANSACTION": "allow" or "warn" or "error"}"""
    ) in ran.stderr
    assert "(procrastinate_extconn.W001)" in ran.stderr


@pytest.mark.parametrize(
    ("setting", "numbers"),
    [
        ({}, []),
        ({"OUTSIDE_TRANSACTION": "allow"}, []),
        ({"OUTSIDE_TRANSACTION": "warn"}, []),
        ({"OUTSIDE_TRANSACTION": "error"}, []),
        ({"WITHOUT_CONNECTION": "error"}, []),
        ({"OUTSIDE_TRANSACTION": "error", "WITHOUT_CONNECTION": "eror"}, ["E003"]),
        ("error", ["E001"]),
        ({"OUTSIDE": "error"}, ["E002"]),
        ({"OUTSIDE_TRANSACTION": None}, ["E003"]),
        ({"OUTSIDE_TRANSACTION": ["error"], "MODE": 1}, ["E002", "E003"]),
    ],
)
def test_check_setting(setting: object, numbers: list[str]) -> None:
    """Each thing that is wrong with the setting has an error of its own."""
    from procrastinate_extconn_django.apps import check_setting

    with override_settings(PROCRASTINATE_EXTCONN=setting):
        found = [message.id for message in check_setting()]
    assert found == [f"procrastinate_extconn.{number}" for number in numbers]


@pytest.mark.parametrize(
    ("vendors", "warned"), [(["sqlite3", "postgresql"], False), (["sqlite3"], True)]
)
def test_check_databases(vendors: list[str], *, warned: bool) -> None:
    """A project is warned where none of its databases is PostgreSQL."""
    from procrastinate_extconn_django import apps

    engines = {vendor: {"ENGINE": f"django.db.backends.{vendor}"} for vendor in vendors}
    with mock.patch.object(apps, "connections", ConnectionHandler({"default": {}, **engines})):
        assert bool(apps.check_databases()) is warned
