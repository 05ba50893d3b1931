"""The plugin is found, takes what is its own, and costs those nothing who do not use its driver."""

from __future__ import annotations

import functools
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from ... import hookspecs
from ...hookspecs import PROJECT_NAME
from ...kinds import Kind
from ...plugins import BUILT_IN, plugins
from .caller import Caller
from .clause import clause

_LOADED = """
import sys, importlib, procrastinate_extconn.plugins
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


class DiscoveryClauses:
    """Entry point, claim, and import."""

    @clause
    async def test_is_found(self, caller: Caller) -> None:
        """The plugin is found through its entry point, and takes the connection."""
        name = caller.kind.plugin
        found = plugins()
        for failure in found.failures:
            assert failure.name != name, f"it could not be loaded: {failure.reason}"
        assert name in found.names(), (
            f"no plugin of that name is there, only {', '.join(found.names())}: install its distribution, which needs "
            f'an entry point {name!r} in the group "{PROJECT_NAME}"'
        )
        await caller.defer()
        assert found.claimed_by(caller.conn) == name, f"{found.claimed_by(caller.conn)!r} takes it"

    @clause
    async def test_leaves_others_alone(self, caller: Caller) -> None:
        """Objects that are not of its driver are left to other plugins, by both hooks."""
        alone = pluggy.PluginManager(PROJECT_NAME)
        alone.add_hookspecs(hookspecs)
        alone.register(_entry_point(caller.kind.plugin).load())
        for conn in (object(), "postgresql://", None, _Duck()):
            description = alone.hook.describe_external(conn=conn)
            assert description is None, f"describe_external takes {conn!r}"
            result = alone.hook.execute_on_external(conn=conn, query="SELECT 1", args={})
            assert result is None, f"execute_on_external takes {conn!r}"

    def test_imports_no_driver(self, kind: Kind) -> None:
        """Loading the plugin does not import its driver."""
        module = _entry_point(kind.plugin).module
        imported = _imported_with(module) & set(kind.requires) - {module}
        assert not imported, (
            f"plugin {kind.plugin!r} imports {', '.join(sorted(imported))} when it is loaded"
        )


@functools.cache
def _imported_with(module: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", _LOADED, module], check=True, capture_output=True, text=True
    )
    return set(result.stdout.split())


class _Duck:
    """Has every method that one may look for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def _entry_point(plugin: str) -> EntryPoint:
    if plugin in BUILT_IN:
        return EntryPoint(plugin, f"procrastinate_extconn.builtin.{plugin}", PROJECT_NAME)
    [found] = entry_points(group=PROJECT_NAME, name=plugin)
    return found
