"""``procrastinate-extconn doctor --app``: the connector of an application, and the modes that are set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

pytest.importorskip("click")
pytest.importorskip("rich")

MAIN = "from procrastinate_extconn.cli import main; main()"
DJANGO = Path(__file__).parents[1] / "docs/examples/django"
NOWHERE = "postgresql://someone@127.0.0.1:1/shop"
"""No server: what the doctor has seen by then is what these tests are about."""
APP = "app = procrastinate.App(connector=procrastinate.PsycopgConnector())"
MEMORY = "extconn.install()\napp = procrastinate.App(connector=Memory())"

Examine = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Run the doctor in a process of its own, beside a module ``shop``, and return what it found."""

    def examine(
        code: str, *args: str, cwd: Path = tmp_path, dsn: str = NOWHERE, **environment: str
    ) -> dict[str, dict[str, Any]]:
        head = "import procrastinate\nimport procrastinate_extconn as extconn\n"
        (tmp_path / "shop.py").write_text(f"{head}{code}\n")
        ran = subprocess.run(
            [sys.executable, "-c", MAIN, "doctor", "--json", "--dsn", dsn, *args],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        found = json.loads(ran.stdout)["findings"]
        assert all(one["fix"] for one in found if one["status"] in ("problem", "hint"))
        assert "secret" not in ran.stdout + ran.stderr
        return {one["check"]: one for one in found}

    return examine


@pytest.mark.parametrize(
    ("code", "app", "modes"),
    [
        (f"extconn.install()\n{APP}", "PsycopgConnector, patched by install()", ("warn", "allow")),
        (
            f"extconn.install(outside_transaction='error')\n{APP}",
            "PsycopgConnector, patched by install()",
            ("error", "error"),
        ),
        (
            f"extconn.install()\n{APP}\nextconn.patch(app, without_connection='warn')",
            "PsycopgConnector, patched by patch()",
            ("warn", "warn"),
        ),
        (
            "app = procrastinate.App(connector=extconn.PoolConnector(object()))",
            "PoolConnector, which needs no patch",
            ("warn", "allow"),
        ),
    ],
    ids=["install", "strict", "patch", "pool"],
)
def test_patched(examine: Examine, code: str, app: str, modes: tuple[str, str]) -> None:
    """The connector's class, how it came to take any connection, and both modes."""
    found = examine(code, "--app", "shop.app")
    assert (found["app"]["status"], found["app"]["text"]) == ("ok", f"shop.app: {app}")
    outside, without = modes
    text = f'outside_transaction="{outside}", without_connection="{without}"'
    assert (found["modes"]["status"], found["modes"]["text"]) == ("ok", text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (APP, "PsycopgConnector, which is not patched"),
        (
            f"from procrastinate.testing import InMemoryConnector as Memory\n{MEMORY}",
            "InMemoryConnector keeps jobs in memory",
        ),
    ],
    ids=["not patched", "in memory"],
)
def test_not_patched(examine: Examine, code: str, text: str) -> None:
    """A connector that takes no connection is a hint, with what to do, and has no modes."""
    found = examine(code, "--app", "shop.app")
    assert (found["app"]["status"], found["app"]["text"]) == ("hint", f"shop.app: {text}")
    assert "modes" not in found


@pytest.mark.parametrize(
    ("code", "path", "text"),
    [
        ("app = 1", "shop.app", "shop.app is no procrastinate.App"),
        (APP, "shop", "shop cannot be imported: LoadFromPathError: shop is not a valid path"),
        ("import nothing_like_it", "shop.app", "LoadFromPathError: No module named 'nothing_like"),
        ("raise RuntimeError('secret')", "shop.app", "shop.app cannot be imported: RuntimeError"),
        ("raise SystemExit('secret')", "shop.app", "shop.app cannot be imported: SystemExit"),
    ],
    ids=["no app", "no path", "no module", "error", "exit"],
)
def test_no_app(examine: Examine, code: str, path: str, text: str) -> None:
    """A path that leads to no app is a problem. What an error says beside the names of modules is left out."""
    found = examine(code, "--app", path)
    assert found["app"]["status"] == "problem"
    assert text in found["app"]["text"]


def test_environment(examine: Examine) -> None:
    """The variable of Procrastinate's own command names the app, too, and what the app prints is not in the way."""
    found = examine(f"print('hello')\nextconn.install()\n{APP}", PROCRASTINATE_APP="shop.app")
    assert found["app"]["text"] == "shop.app: PsycopgConnector, patched by install()"


def test_without_an_app(examine: Examine) -> None:
    """Without an app nothing is imported, and a line says how to see the modes."""
    found = examine("raise SystemExit", PROCRASTINATE_APP="")
    assert "app" not in found
    assert found["modes"]["status"] == "skipped"
    assert "--app shop.app" in found["modes"]["text"]


def test_django(examine: Examine, dsn: str) -> None:
    """A Django project's modes are those of its settings, and its kinds of connection are tried as elsewhere."""
    pytest.importorskip("procrastinate_extconn_django")
    found = examine(
        "",
        "--app",
        "procrastinate.contrib.django.app",
        cwd=DJANGO,
        dsn=dsn,
        DJANGO_SETTINGS_MODULE="shop.settings",
        PGDATABASE=str(conninfo_to_dict(dsn)["dbname"]),
    )
    assert found["app"]["text"].endswith(": DjangoConnector, patched by install()")
    assert found["modes"]["text"] == 'outside_transaction="error", without_connection="error"'
    assert found["drivers"]["status"] == "ok"
