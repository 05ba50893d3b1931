"""What the documentation shows is what happens.

A fenced block marked ``python`` is a whole program. It connects by ``PGHOST``, ``PGDATABASE`` and
the like to a database with Procrastinate's schema and a table ``orders (id bigint primary key)``.
Where "It prints:" and a ``text`` block follow, that is its output. A fragment that cannot run on
its own is a ``{code-block} python`` instead.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

import procrastinate_extconn
from procrastinate_extconn import drivers, hookspecs, testing

SPEC_MARK = f"{hookspecs.PROJECT_NAME}_spec"
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

EXAMPLE = re.compile(
    r"^```python\n(?P<code>.*?)^```$(\s+It prints:\s+^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


def examples() -> list[object]:
    """Each example as a parameter, named by where it stands."""
    return [
        pytest.param(
            example["code"],
            example["output"],
            id=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, example.start()) + 1}",
        )
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for example in EXAMPLE.finditer(text)
    ]


def missing_modules(code: str) -> set[str]:
    """What *code* imports and is not installed here, a driver's plugin included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    names |= {
        f"procrastinate_extconn_{name}" for name in names if (ROOT / "plugins" / name).exists()
    }
    return {name for name in names if importlib.util.find_spec(name) is None}


@pytest.fixture
def environ(dsn: str) -> dict[str, str]:
    """The environment of a program that connects to *dsn* unless it says otherwise."""
    libpq_names = {"dbname": "PGDATABASE"}
    return os.environ | {
        libpq_names.get(key, f"PG{key.upper()}"): str(value)
        for key, value in conninfo_to_dict(dsn).items()
    }


@pytest.mark.parametrize(("code", "output"), examples())
def test_example_runs(
    code: str, output: str | None, environ: dict[str, str], tmp_path: Path
) -> None:
    """An example of the documentation runs without an error or a warning, and prints what the page says."""
    if missing := missing_modules(code):
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    program = tmp_path / "example.py"
    program.write_text(code, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", program],
        capture_output=True,
        env=environ,
        cwd=tmp_path,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    if output is not None:
        assert result.stdout == output


@pytest.mark.parametrize(
    "name",
    [
        *procrastinate_extconn.__all__,
        *testing.__all__,
        *drivers.__all__,
        *(name for name, value in vars(hookspecs).items() if hasattr(value, SPEC_MARK)),
    ],
)
def test_name_is_in_the_reference(name: str) -> None:
    """The reference has an entry for each public name and each hook."""
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. auto\w+:: {name}$", reference, re.MULTILINE)


def test_ci_runs_the_readme_command() -> None:
    """What the README tells people to run as the tests is what CI runs."""
    [command] = re.findall(
        r"^\$ (.* \.venv/bin/tox)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert command in (ROOT / ".ci/run").read_text().splitlines()
