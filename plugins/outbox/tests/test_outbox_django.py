"""Django on SQLite and MariaDB: the app's migration, and jobs in ``atomic()``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

SETTINGS = """
DATABASES = {"default": %r}
INSTALLED_APPS = ["procrastinate_extconn_django", "procrastinate_extconn_outbox.django"]
PROCRASTINATE_EXTCONN = {"OUTSIDE_TRANSACTION": "error"}
USE_TZ = %r
"""
PROGRAM = """
import json
import django
django.setup()
import procrastinate
import procrastinate_extconn as extconn
from django.core.management import call_command
from django.db import connection, transaction
from procrastinate_extconn.testing import assert_deferred
from procrastinate_extconn_outbox import Outbox

call_command("check", fail_level="WARNING", verbosity=0)
call_command("migrate", verbosity=0)
app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector())
ship = app.configure_task("ship", connection=Outbox(connection))
seen = {"outside": extconn.describe(Outbox(connection)).state}
try:
    ship.defer(n=0)
except extconn.OutsideTransaction as exc:
    seen["refused"] = str(exc)
for n in (1, 2):
    with transaction.atomic():
        seen["id"] = ship.defer(n=n, text="%s e\\u0301")
        seen["inside"] = extconn.describe(Outbox(connection)).state
        assert_deferred(Outbox(connection), "ship", n=n, text="%s e\\u0301")
        transaction.set_rollback(n == 2)
with transaction.atomic():
    transaction.set_rollback(True)
    seen["failed"] = extconn.describe(Outbox(connection)).state
with connection.cursor() as cursor:
    cursor.execute("SELECT jobs FROM procrastinate_outbox")
    seen["rows"] = [json.loads(jobs) for (jobs,) in cursor.fetchall()]
call_command("migrate", "procrastinate_outbox", "zero", verbosity=0)
seen["tables"] = [name for name in connection.introspection.table_names() if "outbox" in name]
print(json.dumps(seen))
"""


def database(url: URL) -> dict[str, Any]:
    """Give Django's settings for the database at *url*."""
    if url.drivername == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.database}
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": url.database,
        "HOST": url.host,
        "PORT": url.port,
        "USER": url.username,
    }


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("make", ["sqlite", "mariadb"])
def test_project(request: pytest.FixtureRequest, tmp_path: Path, make: str, use_tz: bool) -> None:
    """The migration makes the tables and drops them; a job shares the fate of ``atomic()``, and is refused outside."""
    pytest.importorskip("procrastinate_extconn_django")
    if make == "mariadb":
        pytest.importorskip("MySQLdb")
        server = request.getfixturevalue("mariadb")
        url = server.url("mysql+mysqldb", server.new_database())
    else:
        url = URL.create("sqlite", database=str(tmp_path / "django.sqlite"))
    (tmp_path / "outbox_settings.py").write_text(SETTINGS % (database(url), use_tz))
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "DJANGO_SETTINGS_MODULE": "outbox_settings",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    [[job]] = seen.pop("rows")
    assert job["args"] == {"n": 1, "text": "%s e\u0301"}
    assert "with transaction.atomic(): ..." in seen.pop("refused")
    assert seen == {
        "outside": "autocommit",
        "id": -1,
        "inside": "in_transaction",
        "failed": "failed",
        "tables": [],
    }
