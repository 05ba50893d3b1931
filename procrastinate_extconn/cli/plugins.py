"""``procrastinate-extconn plugins``: who is asked whether a connection is theirs."""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import plugins as installed
from ..exceptions import PluginWarning
from ..known_plugins import KNOWN, install_line
from ..plugins import BUILT_IN, Plugins
from . import console

DISTRIBUTION = "procrastinate-extconn"


def version() -> str:
    """The version of procrastinate-extconn that is installed."""
    return importlib.metadata.version(DISTRIBUTION)


def loaded_plugins() -> Plugins:
    """The plugins. What could not be loaded is told by who asks, not by a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return installed.plugins()


@click.command()
@console.as_json
def plugins(as_json: bool) -> None:
    """List the plugins, in the order in which they are asked.

    Then those that are known but not installed, and what could not be loaded. The exit status is 1 if there is any of
    the latter.
    """
    loaded = loaded_plugins()
    asked = [_describe(loaded, name) for name in loaded.names()]
    there = {*loaded.names(), *(failure.name for failure in loaded.failures)}
    not_installed = {name: install_line(name) for name in KNOWN if name not in there}
    if as_json:
        console.print_json(
            {
                "plugins": asked,
                "not_installed": [
                    {"name": name, "install": line} for name, line in not_installed.items()
                ],
                "failures": [failure._asdict() for failure in loaded.failures],
            }
        )
    else:
        _print(console.stdout(), loaded, asked, not_installed)
    if loaded.failures:
        raise SystemExit(1)


def _describe(loaded: Plugins, name: str) -> dict[str, Any]:
    found = loaded.distributions.get(name)
    source = (DISTRIBUTION, version()) if name in BUILT_IN else (None, None)
    if found:
        source = found.name, found.version
    return {
        "name": name,
        "distribution": source[0],
        "version": source[1],
        "takes": _takes(loaded.get(name)),
    }


def title(name: str) -> str:
    """What people call the driver of the plugin *name*: the first words of its docstring."""
    words, colon, _ = (_takes(loaded_plugins().get(name)) or "").partition(":")
    return words if colon else name


def _takes(plugin: object) -> str | None:
    """The first sentence that the plugin says of itself."""
    text = inspect.getdoc(plugin)
    return text.partition("\n\n")[0].replace("\n", " ").replace("`", "") if text else None


def _print(
    out: Console, loaded: Plugins, asked: list[dict[str, Any]], not_installed: dict[str, str]
) -> None:
    table = Table.grid("", "", "", padding=(0, 2, 0, 0))
    for number, plugin in enumerate(asked, start=1):
        text = Text(plugin["takes"] or "It does not say what it takes.")
        source = f"{plugin['distribution']} {plugin['version']}" if plugin["distribution"] else ""
        text.append(f"\n{source}", style="dim")
        table.add_row(f"{number:>2}", Text(plugin["name"], "bold"), text)
    out.print("Asked in this order:\n", style="bold")
    out.print(table)
    if not_installed:
        out.print("\nNot installed:\n", style="bold")
    for name, line in not_installed.items():
        out.print(f"    {name}: {line}", style="dim")
    if loaded.failures:
        out.print("\nLeft out:\n", style="bold red")
    for failure in loaded.failures:
        out.print(f"    {failure.name}, of {failure.distribution}: {failure.reason}", style="red")
