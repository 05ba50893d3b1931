"""What a test installs: the layer, and plugins of strangers that are found by their entry points."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import procrastinate_extconn as extconn
from procrastinate_extconn import plugins as plugins_module
from procrastinate_extconn.layer import layer


class Site:
    """A folder on `sys.path` into which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, source: str, entry_point: str, **modules: str) -> None:
        """Install a distribution with one module of the same name and one entry point.

        :param modules: further modules, each by its name.
        """
        module = name.replace("-", "_")
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[procrastinate_extconn]\n{entry_point} = {module}\n"
        )
        for file, text in {module: source, **modules}.items():
            (self.folder / f"{file}.py").write_text(textwrap.dedent(text))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A folder for the distributions of one test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins are found anew, and what a test registers is forgotten."""
    monkeypatch.setattr(plugins_module, "_plugins", None)


@pytest.fixture
def layer_off() -> Iterator[None]:
    """The layer is off before the test and after it, also for each connector."""
    _turn_off()
    yield
    _turn_off()


def _turn_off() -> None:
    for connector in list(layer.patched):
        extconn.unpatch(connector)
    extconn.uninstall()
