"""The plugins of the documentation, which people copy, are built, installed and pass the contract kit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from procrastinate_extconn.testing.server import VARIABLE, server_dsn

EXAMPLES = Path(__file__).parents[1] / "docs/examples/plugins"
NAMES = sorted(path.name for path in EXAMPLES.iterdir())

IS_NOT_ABOUT = {
    "mydriver": {"no kind is async", "the plugin has neither connect_external nor listen_external"},
    "myasyncdriver": set(),
    "mywrapper": {
        "no kind is async",
        "the plugin has neither connect_external nor listen_external",
        "no connection of this kind commits by itself: if there is one, name it in `commits_by_itself`",
    },
}
"""Why the kit leaves clauses out: they are about something that the example has not."""


def run(*args: str, cwd: Path, **environ: str) -> str:
    """Run Python, and return what it prints."""
    result = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def lines(file: Path) -> int:
    """How many lines of *file* have something in them."""
    return len([line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Each example passes the kit from its wheel, and a clause is left out only if it is about something else."""
    shutil.copytree(EXAMPLES / name, tmp_path, dirs_exist_ok=True)
    run("-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=tmp_path)
    [wheel] = (tmp_path / "dist").iterdir()
    (tmp_path / f"procrastinate_extconn_{name}.py").unlink()
    # A wheel of pure Python is importable, metadata and all, as it is.
    printed = run(
        *("-m", "pytest", "-p", "no:cacheprovider", "-rs", "--tb=short"),
        cwd=tmp_path,
        PYTHONPATH=str(wheel),
        COLUMNS="400",
        **{VARIABLE: server_dsn(pytestconfig)},
    )
    assert " passed" in printed
    reasons = re.findall(r"^SKIPPED .*?\.py(?::\d+)?: (.*)$", printed, re.MULTILINE)
    assert set(reasons) == IS_NOT_ABOUT[name]


@pytest.mark.parametrize("name", NAMES)
def test_test_is_short(name: str) -> None:
    """What an author writes to have the contract tested is fifteen lines at most."""
    assert lines(EXAMPLES / name / f"tests/test_{name}.py") <= 15


def test_plugin_is_short() -> None:
    """The plugin of an ordinary driver is about forty lines."""
    assert lines(EXAMPLES / "mydriver/procrastinate_extconn_mydriver.py") <= 45
