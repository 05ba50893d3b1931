"""The plugin of the documentation, which people copy, is built, installed and passes the contract kit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from procrastinate_extconn.testing import PluginContract
from procrastinate_extconn.testing.contract.clause import clauses_of
from procrastinate_extconn.testing.server import VARIABLE, server_dsn

EXAMPLE = Path(__file__).parents[1] / "docs/examples/plugin"
MODULE = "procrastinate_extconn_mydriver.py"


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the example's wheel, from a copy of its folder."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    run("-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=folder)
    [built] = (folder / "dist").iterdir()
    return built


def test_keeps_the_contract(wheel: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The example passes every clause of the kit, from its wheel, but for pools, of which it has none."""
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    (tmp_path / MODULE).unlink()
    # A wheel of pure Python is importable, metadata and all, as it is.
    printed = run(
        *("-m", "pytest", "-p", "no:cacheprovider"),
        cwd=tmp_path,
        PYTHONPATH=str(wheel),
        **{VARIABLE: server_dsn(pytestconfig)},
    )
    clauses = clauses_of(PluginContract).values()
    of_pools = sum(clause.on == "pools" for clause in clauses)
    passed = len(clauses) - of_pools - 1
    assert f" {passed} passed, {of_pools} skipped, 1 xfailed" in printed


def test_test_is_short() -> None:
    """What an author writes to have the contract tested is fifteen lines at most."""
    source = (EXAMPLE / "tests/test_mydriver.py").read_text(encoding="utf-8")
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
