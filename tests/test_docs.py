"""What the documentation shows is what happens, and all of it is run.

Python stands on a page in two ways. A fenced block marked ``python`` is a whole program. It connects by ``PGHOST``,
``PGDATABASE`` and the like to a database with Procrastinate's schema. It makes its own table, and can be run again.
Where "It prints:" and a ``text`` block follow, that is the output of the first run. Everything else is included
from a file in ``docs/examples``. A test file is run here, an application by `test_examples`, a plugin by
`test_write_a_plugin`.
A page with Python of any other kind, a fragment that nobody runs, fails `test_no_fragment_is_left`.
The README of a plugin shows a part of such a program.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import procrastinate_extconn
from procrastinate_extconn import drivers, hookspecs, testing

SPEC_MARK = f"{hookspecs.PROJECT_NAME}_spec"
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PLUGIN_READMES = sorted(ROOT.glob("plugins/*/README.md"))
TEST_FILES = sorted((DOCS / "examples").glob("test_*.py"))

EXAMPLE = re.compile(
    r"^```python\n(?P<code>.*?)^```$(\s+It prints:\s+^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)

BLOCK = re.compile(
    r"^(?P<opening> *(?P<fence>`{3,}|~{3,}|:{3,}).*)\n(.*\n)*? *(?P=fence) *$", re.MULTILINE
)
RUN_OR_NOT_PYTHON = re.compile(
    r"```(python|console|text|sql|diff|\{(toctree|eval-rst|image|include)\}.*"
    r"|\{literalinclude\} (\w+\.txt|\.\./examples/(\w+/.*|test_\w+\.py)))"
)


def python_blocks(page: Path) -> list[re.Match[str]]:
    """The blocks on a page that are marked ``python``, each with the output that follows it."""
    return list(EXAMPLE.finditer(page.read_text(encoding="utf-8")))


def programs() -> list[object]:
    """Each program on a page as a parameter, named by where it stands."""
    return [
        pytest.param(
            example["code"],
            example["output"],
            id=f"{page.relative_to(ROOT)}:{example.string.count(chr(10), 0, example.start()) + 1}",
        )
        for page in PAGES
        for example in python_blocks(page)
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


def environ(dsn: str) -> dict[str, str]:
    """The environment of a program that connects to *dsn* unless it says otherwise."""
    libpq_names = {"dbname": "PGDATABASE"}
    return os.environ | {
        libpq_names.get(key, f"PG{key.upper()}"): str(value)
        for key, value in conninfo_to_dict(dsn).items()
    }


def without_orders(dsn: str) -> str:
    """The same database, where no program has made its table yet."""
    with psycopg.connect(dsn) as conn:
        conn.execute("DROP TABLE orders")
    return dsn


@pytest.fixture
def reader_dsn(dsn: str) -> str:
    """Address a database as the pages expect it: with Procrastinate's schema, without a table of orders."""
    return without_orders(dsn)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Run code in a file of its own, where a warning is an error, and return what it prints."""

    def run(dsn: str, code: str, *options: str) -> str:
        if missing := missing_modules(code):
            pytest.skip(f"not installed: {', '.join(sorted(missing))}")
        (tmp_path / "test_example.py").write_text(code, encoding="utf-8")
        result = subprocess.run(
            [sys.executable, "-W", "error", *options, "test_example.py"],
            capture_output=True,
            env=environ(dsn),
            cwd=tmp_path,
            text=True,
            timeout=110,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="module")
def used_dsn(new_database: Callable[[], str]) -> str:
    """Address a database that one program after the other runs in."""
    return without_orders(new_database())


@pytest.mark.programs
@pytest.mark.parametrize(("code", "output"), programs())
def test_program_runs(
    code: str, output: str | None, reader_dsn: str, used_dsn: str, run: Callable[..., str]
) -> None:
    """A program on a page runs without an error or a warning, and prints what the page says.

    It runs again where the programs of other pages have run, and left their tables.
    """
    printed = run(reader_dsn, code)
    if output is not None:
        assert printed == output
    run(used_dsn, code)
    assert not re.search("CREATE TABLE (?!IF NOT EXISTS)", code)
    with psycopg.connect(used_dsn) as conn:
        # The thousands that one page imports would keep the next pages' workers busy.
        conn.execute("DELETE FROM procrastinate_jobs WHERE status = 'todo'")


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_first_program_needs_an_empty_database(
    page: str, empty_dsn: str, run: Callable[..., str]
) -> None:
    """The first program that a reader runs brings Procrastinate's schema along, and runs again with it."""
    [program] = python_blocks(ROOT / page)
    assert run(empty_dsn, program["code"]) == program["output"]
    run(empty_dsn, program["code"])


@pytest.mark.programs
@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.stem)
def test_test_file_passes_twice(file: Path, reader_dsn: str, run: Callable[..., str]) -> None:
    """A test file that pages show passes, with nothing skipped, and passes again."""
    loop_scope = (
        "asyncio_default_fixture_loop_scope=function"  # pytest-asyncio warns where it is unset
    )
    for _ in range(2):
        options = ("-m", "pytest", "-o", loop_scope)
        printed = run(reader_dsn, file.read_text(encoding="utf-8"), *options)
        assert " passed" in printed
        assert "skipped" not in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_fragment_is_left(page: Path) -> None:
    """All Python on a page is a program, or comes from a file that is run."""
    blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
    openings = [block["opening"] for block in blocks]
    assert [one for one in openings if not RUN_OR_NOT_PYTHON.fullmatch(one)] == []


def lines(code: str) -> str:
    """*code* without its indentation."""
    return "\n".join(line.strip() for line in code.splitlines())


@pytest.mark.parametrize("readme", PLUGIN_READMES, ids=lambda readme: readme.parent.name)
def test_plugin_readme_shows_what_is_run(readme: Path) -> None:
    """The Python in a plugin's README stands in a program of the documentation, line for line."""
    run = [example["code"] for page in PAGES for example in python_blocks(page)]
    run += [file.read_text(encoding="utf-8") for file in DOCS.glob("examples/**/*.py")]
    shown = [example["code"] for example in python_blocks(readme)]
    assert shown
    assert [code for code in shown if not any(lines(code) in lines(one) for one in run)] == []


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
    entry = re.compile(rf"^\.\. auto\w+:: {name}$", re.MULTILINE)
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md")]
    assert any(entry.search(page) for page in pages)


def test_links_of_the_readme_resolve() -> None:
    """What the README links to in the repository is there. Sphinx checks the links of the pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)(.*?)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_readme_command() -> None:
    """What the README tells people to run as the tests is what CI runs."""
    [command] = re.findall(
        r"^\$ (.* \.venv/bin/tox)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_install_lines_are_as_released() -> None:
    """Each line that installs is as the one constant says that decides whether there is a release."""
    check = [sys.executable, str(DOCS / "install_lines.py"), "--check"]
    ran = subprocess.run(check, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
