"""For tests: of applications that defer jobs, and, with `PluginContract`, of driver plugins.

The extra ``test`` brings what the latter needs; the former need nothing but the driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..kinds import Held, Kind
    from .contract import ContractBroken, PluginContract, variant
    from .deferred import assert_deferred, assert_not_deferred, deferred_jobs
    from .memory import StrictInMemoryConnector
    from .rollback import rolled_back
    from .running import JobRun, run_deferred

__all__ = [
    "ContractBroken",
    "Held",
    "JobRun",
    "Kind",
    "PluginContract",
    "StrictInMemoryConnector",
    "assert_deferred",
    "assert_not_deferred",
    "deferred_jobs",
    "rolled_back",
    "run_deferred",
    "variant",
]

_HOMES = {
    "ContractBroken": ".contract",
    "Held": "..kinds",
    "JobRun": ".running",
    "Kind": "..kinds",
    "PluginContract": ".contract",
    "StrictInMemoryConnector": ".memory",
    "assert_deferred": ".deferred",
    "assert_not_deferred": ".deferred",
    "deferred_jobs": ".deferred",
    "rolled_back": ".rollback",
    "run_deferred": ".running",
    "variant": ".contract",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: an application's tests need no hypothesis."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value
