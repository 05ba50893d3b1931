"""The command line: help, styles, plugins, and what it says where it cannot run."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from procrastinate_extconn.known_plugins import KNOWN, install_line, where
from procrastinate_extconn.plugins import plugins

MAIN = "from procrastinate_extconn.cli import main; main()"
STYLE = re.compile(r"\x1b\[[\d;]*\b3\d")


def command_line(
    *args: str, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own.

    :param before: a statement to run there first.
    """
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{MAIN}", *args],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def on_a_terminal(*args: str, **environment: str) -> str:
    """What the command prints where a person sees it."""
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "80", **environment}
    without = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *args], env=without | environment, stdout=theirs
    ):
        os.close(theirs)
        output = b""
        while chunk := _read(ours):
            output += chunk
    os.close(ours)
    return output.decode()


@pytest.mark.parametrize("name", ["click", "rich"])
def test_without_the_extra(name: str) -> None:
    """Without click or rich, one line says what to install."""
    first = next(one for one in ("click", "rich") if one == name or find_spec(one) is None)
    result = command_line("plugins", before=f"import sys; sys.modules[{name!r}] = None")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"procrastinate-extconn: the command line needs {first}, which is not installed: "
        f"run `{install_line(extras='cli')}`{where()}\n"
    )


def test_core_does_without() -> None:
    """The layer, installed and with its plugins loaded, has imported nothing of the command line's."""
    code = """if True:
        import sys, procrastinate_extconn
        from procrastinate_extconn.plugins import plugins
        procrastinate_extconn.install()
        plugins()
        print([name for name in sys.modules if name.split(".")[0] in ("click", "rich")])
    """
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


class TestCommand:
    """What needs click and rich."""

    @pytest.fixture(autouse=True)
    def run(self) -> Callable[..., Any]:
        """Run the command in this process."""
        click = pytest.importorskip("click.testing")
        pytest.importorskip("rich")
        group = importlib.import_module("procrastinate_extconn.cli.group")
        invoke = click.CliRunner(env={"COLUMNS": "80"}).invoke
        return lambda *args: invoke(group.cli, args, prog_name="procrastinate-extconn")

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            ((), ["demo", "doctor", "plugins", "needs no server"]),
            (("demo",), ["--dsn", "--json", "The exit status is 0"]),
            (("doctor",), ["--dsn", "--json", "PGHOST", "The exit status is 0"]),
            (("plugins",), ["--json", "The exit status is 1"]),
        ],
    )
    def test_help(self, args: tuple[str, ...], says: list[str], run: Callable[..., Any]) -> None:
        """Each command explains itself in plain text on lines that fit a terminal."""
        result = run(*args, "--help")
        assert result.exit_code == 0
        text = " ".join(result.stdout.split())
        assert all(words in text for words in says)
        assert "\x1b" not in result.stdout
        assert "..." not in result.stdout.replace("[ARGS]...", "")
        assert max(map(len, result.stdout.splitlines())) <= 80

    @pytest.mark.parametrize("args", [("frobnicate",), ("demo", "--frobnicate"), ("doctor", "x")])
    def test_usage(self, args: tuple[str, ...], run: Callable[..., Any]) -> None:
        """A command that is not understood has exit status 2."""
        result = run(*args)
        assert result.exit_code == 2
        assert result.output.startswith("Usage: procrastinate-extconn")

    @pytest.mark.parametrize("setting", [{}, {"NO_COLOR": "1"}])
    def test_styles_on_a_terminal(self, setting: dict[str, str]) -> None:
        """There are styles on a terminal, unless NO_COLOR says no."""
        output = on_a_terminal("doctor", "--dsn=host=127.0.0.1 port=1", **setting)
        assert "problem" in output
        assert bool(STYLE.search(output)) is not bool(setting)

    def test_plugins_on_a_narrow_terminal(self) -> None:
        """No name is cut short there, and nothing is as wide as to be wrapped."""
        output = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal("plugins"))
        lines = [line.rstrip() for line in output.splitlines()]
        assert max(map(len, lines)) <= 80
        assert "…" not in output
        for name, distribution in plugins().distributions.items():
            [at] = [n for n, line in enumerate(lines) if re.match(rf" ?\d+  {name}  ", line)]
            assert f"{distribution.name} {distribution.version}" in " ".join(lines[at : at + 4])

    def test_no_colours_elsewhere(self) -> None:
        """There are none in a pipe, and no sentence is folded there."""
        result = command_line("doctor", "--dsn=host=127.0.0.1 port=1", TERM="xterm-256color")
        assert "\x1b" not in result.stdout
        assert re.search(
            r"^problem +server +no connection to .* 127\.0\.0\.1:1 .{60,}$",
            result.stdout,
            re.MULTILINE,
        )

    def test_plugins(self) -> None:
        """Plugins are listed in the order in which they are asked, with their distributions."""
        result = command_line("plugins", "--json")
        assert result.returncode == 0
        listed = json.loads(result.stdout)
        assert [plugin["name"] for plugin in listed["plugins"]] == plugins().names()
        assert listed["failures"] == []
        psycopg = listed["plugins"][-1]
        assert psycopg["distribution"] == "procrastinate-extconn"
        assert psycopg["takes"] == "psycopg 3: psycopg.Connection and psycopg.AsyncConnection."
        for plugin in listed["plugins"]:
            assert plugin["version"]
            assert plugin["takes"]
        missing = {plugin["name"] for plugin in listed["not_installed"]}
        assert missing == set(KNOWN) - set(plugins().names())

    def test_plugins_not_installed(self) -> None:
        """A plugin that is known but not installed comes with the command that installs it."""
        before = "from procrastinate_extconn.known_plugins import KNOWN; KNOWN['imaginary'] = ()"
        result = command_line("plugins", before=before)
        assert result.returncode == 0
        assert "  imaginary: pip install ./plugins/imaginary\n" in result.stdout

    def test_plugin_left_out(self, tmp_path: Path) -> None:
        """A plugin that does not load is listed with its reason, without a warning, and the exit status is 1."""
        (tmp_path / "broken.py").write_text("import a_driver_that_is_not_there")
        metadata = tmp_path / "extconn_broken-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: extconn-broken\nVersion: 1.2\n"
        )
        (metadata / "entry_points.txt").write_text("[procrastinate_extconn]\nbroken = broken\n")
        result = command_line("plugins", PYTHONPATH=str(tmp_path))
        assert result.returncode == 1
        reason = "ModuleNotFoundError: No module named 'a_driver_that_is_not_there'"
        assert f"\nLeft out:\n\n    broken, of extconn-broken: {reason}\n" in result.stdout
        assert result.stderr == ""
        result = command_line("plugins", "--json", PYTHONPATH=str(tmp_path))
        assert result.returncode == 1
        failure = {"name": "broken", "distribution": "extconn-broken", "reason": reason}
        assert json.loads(result.stdout)["failures"] == [failure]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other end is closed
        return b""
