"""The plugins of the documentation, which people copy, are built, installed and pass the contract kit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from procrastinate_extconn import hookspecs
from procrastinate_extconn.testing.server import VARIABLE, server_dsn

pytestmark = [pytest.mark.programs, pytest.mark.timeout(300)]

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples/plugins"
NAMES = sorted(path.name for path in EXAMPLES.iterdir())

SPEC_MARK = f"{hookspecs.PROJECT_NAME}_spec"

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


def run(*args: str, cwd: Path, status: int = 0, **environ: str) -> str:
    """Run Python, which ends with *status*, and return what it prints."""
    result = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == status, result.stdout
    return result.stdout


def lines(file: Path) -> int:
    """How many lines of *file* have something in them."""
    return len([line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()])


@pytest.fixture
def run_kit(tmp_path: Path, pytestconfig: pytest.Config) -> Callable[..., str]:
    """Install a copy of an example from its wheel, run its test, and return what is printed."""

    def run_kit(name: str, *options: str, edit: tuple[str, str] = ("", ""), status: int = 0) -> str:
        shutil.copytree(EXAMPLES / name, tmp_path, dirs_exist_ok=True)
        module = tmp_path / f"procrastinate_extconn_{name}.py"
        source = module.read_text(encoding="utf-8")
        assert edit[0] in source
        module.write_text(source.replace(*edit), encoding="utf-8")
        run("-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=tmp_path)
        module.unlink()
        [wheel] = (tmp_path / "dist").iterdir()
        # A wheel of pure Python is importable, metadata and all, as it is.
        return run(
            *("-m", "pytest", "-p", "no:cacheprovider", "-rs", "--tb=short", *options),
            cwd=tmp_path,
            status=status,
            PYTHONPATH=str(wheel),
            COLUMNS="400",
            **{VARIABLE: server_dsn(pytestconfig)},
        )

    return run_kit


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(name: str, run_kit: Callable[..., str]) -> None:
    """Each example passes the kit from its wheel, and a clause is left out only if it is about something else."""
    printed = run_kit(name)
    assert " passed" in printed
    reasons = re.findall(r"^SKIPPED .*?\.py(?::\d+)?: (.*)$", printed, re.MULTILINE)
    assert set(reasons) == IS_NOT_ABOUT[name]


def test_page_shows_what_a_broken_plugin_is_told(run_kit: Callable[..., str]) -> None:
    """A plugin that commits is told what the page shows, word for word."""
    returned = "return rows(cursor.description, cursor.fetchall)"
    edit = (returned, f"conn.commit() if cursor.description else None; {returned}")
    printed = run_kit("mydriver", "-k", "invisible_before_commit", edit=edit, status=1)
    page = (DOCS / "howto/write-a-plugin.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown in printed


def first_column(title: str) -> list[str]:
    """The names in the first column of a table on the page of the contract, by the title of that column."""
    page = (DOCS / "howto/plugin-contract.md").read_text(encoding="utf-8")
    [rows] = re.findall(rf"^\| {title} \|.*\n\| ---.*\n((?:\|.*\n)*)", page, re.MULTILINE)
    return re.findall(r'^\| `"?([\w.]+)', rows, re.MULTILINE)


def test_contract_page_is_complete() -> None:
    """The page of the contract has every hook, every state, and every type of an argument."""
    specs = [name for name, value in vars(hookspecs).items() if hasattr(value, SPEC_MARK)]
    assert sorted(first_column("hook")) == sorted(specs)
    assert first_column("state") == [*get_args(hookspecs.State)]
    types = {name.rpartition(".")[2] for name in first_column("type of an argument")}
    assert types == set(hookspecs.Value.split(" | "))


@pytest.mark.parametrize("name", NAMES)
def test_test_is_short(name: str) -> None:
    """What an author writes to have the contract tested is fifteen lines at most."""
    assert lines(EXAMPLES / name / f"tests/test_{name}.py") <= 15


def test_plugin_is_short() -> None:
    """The plugin of an ordinary driver is about forty lines."""
    assert lines(EXAMPLES / "mydriver/procrastinate_extconn_mydriver.py") <= 45
