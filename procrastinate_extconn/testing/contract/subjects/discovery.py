"""The plugin is found, costs those nothing who do not use its driver, and names its kinds."""

from __future__ import annotations

import functools
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

from ....hookspecs import PROJECT_NAME
from ....kinds import all_kinds
from ....plugins import BUILT_IN, plugins
from ..caller import Caller
from ..clause import clause, must

_LOADED = """
import sys, importlib, procrastinate_extconn.plugins
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.modules) - before))
"""


class DiscoveryClauses:
    """Entry point, import, and kinds."""

    @clause()
    async def test_is_found(self, caller: Caller) -> None:
        """The plugin is found by its name, and takes the connection."""
        await caller.defer()
        claimed_by = plugins().claimed_by(caller.conn)
        must(claimed_by == caller.kind.plugin, f"{claimed_by!r} takes it")

    @clause()
    async def test_imports_no_driver(self, caller: Caller) -> None:
        """Loading the plugin imports neither its driver nor what opens connections."""
        module = _module(caller.kind.plugin)
        if module is None:
            pytest.skip("the plugin was registered at run time, so nobody else loads it")
        imported = _imported_with(module)
        drivers = {name.partition(".")[0] for name in imported} & set(caller.kind.requires)
        drivers -= {module.partition(".")[0]}
        must(not drivers, f"loading {module} imports {', '.join(sorted(drivers))}")

    @clause()
    async def test_external_kinds(self, caller: Caller) -> None:
        """If the plugin has `external_kinds`, it names its own kinds, each once, with modules that are there."""
        own = [kind for kind in all_kinds() if kind.plugin == caller.kind.plugin]
        ids = [kind.id for kind in all_kinds()]
        for kind in own:
            must(ids.count(kind.id) == 1, f"the id {kind.id!r} is not unique")
        if caller.kind.plugin in plugins().names("external_kinds"):
            must(own, f"none of the kinds that it names has the plugin {caller.kind.plugin!r}")


@functools.cache
def _imported_with(module: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", _LOADED, module], check=False, capture_output=True, text=True
    )
    must(
        result.returncode == 0,
        f"importing {module} in a new process fails: {result.stderr.strip().rpartition(chr(10))[2]}",
    )
    return set(result.stdout.split())


def _module(plugin: str) -> str | None:
    if plugin in BUILT_IN:
        return f"procrastinate_extconn.builtin.{plugin}"
    found: list[EntryPoint] = list(entry_points(group=PROJECT_NAME, name=plugin))
    return found[0].module if found else None
