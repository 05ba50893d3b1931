"""What a release consists of: the core's distribution and the plugins', which belong together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import procrastinate_extconn as extconn

if sys.version_info < (3, 11):
    pytest.skip("Python 3.10 reads no TOML", allow_module_level=True)

import tomllib

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def project(folder: Path) -> dict[str, Any]:
    """Return what *folder* says of its distribution."""
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


VERSION = project(ROOT)["version"]


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_and_core(name: str) -> None:
    """A plugin has the core's version, Pythons and licence, and asks for a core and other plugins as new as itself."""
    folder = ROOT / "plugins" / name
    plugin, core = project(folder), project(ROOT)
    for key in ("version", "requires-python", "license", "authors"):
        assert plugin[key] == core[key]
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    ours = [one for one in plugin["dependencies"] if one.startswith(core["name"])]
    assert ours
    for requirement in ours:
        assert requirement.partition(">=")[2] == VERSION.rpartition(".")[0]


def test_changelog() -> None:
    """The newest version in the changelog is this one."""
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## [Unreleased]"
    assert headings[1].startswith(f"## [{VERSION}] - ")


def test_types_are_tried_from_outside() -> None:
    """What the type checkers read in the place of a user's program has every public name in it."""
    program = (ROOT / "tests/what_users_write.py").read_text()
    missing = [name for name in extconn.__all__ if f"extconn.{name}" not in program]
    assert missing == ["Diagnostic", "hookimpl"]  # imported by their names, as plugins do
    assert "import Diagnostic, hookimpl\n" in program
