"""A driver is known in one place, its plugin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import procrastinate_extconn

PACKAGE = Path(procrastinate_extconn.__file__).parent
NAMES = re.compile(
    r"asyncpg|psycopg2|\bpsycopg\b|aiopg|pg8000|psqlpy|django|tortoise|piccolo|peewee|sqlalchemy",
    re.IGNORECASE,
)
MAY_NAME_DRIVERS = ("builtin", "testing", "cli", "temporary_server", "known_plugins.py")
CORE = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] not in MAY_NAME_DRIVERS
)


@pytest.mark.parametrize("file", CORE, ids=str)
def test_core_names_no_driver(file: Path) -> None:
    """No file of the core names a driver or a library that wraps one, in its code, comments or docstrings."""
    lines = (PACKAGE / file).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if NAMES.search(line)] == []


def test_plugins_of_this_project_are_found() -> None:
    """The search finds names where they may be."""
    assert len(CORE) > 20
    assert all(
        NAMES.search((PACKAGE / name).read_text())
        for name in ("known_plugins.py", "builtin/__init__.py")
    )
