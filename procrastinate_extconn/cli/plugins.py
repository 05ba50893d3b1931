"""``procrastinate-extconn plugins``: who is asked whether a connection is theirs."""

from __future__ import annotations

import inspect
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ..fallback import KNOWN, install_line
from ..plugins import BUILT_IN, Plugins
from . import console
from .installation import DISTRIBUTION, loaded_plugins, version


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


def _takes(plugin: object) -> str | None:
    """The first sentence that the plugin says of itself."""
    text = inspect.getdoc(plugin)
    return text.partition("\n\n")[0].replace("\n", " ").replace("`", "") if text else None


def _print(
    out: Console, loaded: Plugins, asked: list[dict[str, Any]], not_installed: dict[str, str]
) -> None:
    table = Table("asked", "plugin", "distribution", "what it takes", box=console.BOX)
    for number, plugin in enumerate(asked, start=1):
        source = f"{plugin['distribution']} {plugin['version']}"
        table.add_row(str(number), plugin["name"], source, plugin["takes"] or "it does not say")
    out.print(table)
    if not_installed:
        out.print("Not installed:", style="dim")
    for name, line in not_installed.items():
        out.print(f"  {name}: {line}", style="dim")
    for failure in loaded.failures:
        out.print(
            f"Left out: {failure.name}, of {failure.distribution}: {failure.reason}",
            style="bold red",
        )
