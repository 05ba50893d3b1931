"""Defer a Procrastinate job on the connection that you already hold, inside your own transaction."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .exceptions import (
    ExternalConnectionError,
    OutsideTransaction,
    OutsideTransactionWarning,
    PluginWarning,
    SyncAsyncMismatch,
    UnsupportedConnection,
    UnusableConnection,
)

if TYPE_CHECKING:
    from .ambient import standalone, using
    from .bulk import defer_many, defer_many_async
    from .completion.calls import complete, complete_async
    from .connector import ExternalConnector
    from .hookspecs import Description, Diagnostic, hookimpl
    from .options import external
    from .patching import install, patch, uninstall, unpatch
    from .plugins import describe, register, unregister
    from .pool.connector import PoolConnector

__all__ = [
    "Description",
    "Diagnostic",
    "ExternalConnectionError",
    "ExternalConnector",
    "OutsideTransaction",
    "OutsideTransactionWarning",
    "PluginWarning",
    "PoolConnector",
    "SyncAsyncMismatch",
    "UnsupportedConnection",
    "UnusableConnection",
    "complete",
    "complete_async",
    "defer_many",
    "defer_many_async",
    "describe",
    "external",
    "hookimpl",
    "install",
    "patch",
    "register",
    "standalone",
    "uninstall",
    "unpatch",
    "unregister",
    "using",
]

_HOMES = {
    name: module
    for module, names in {
        "ambient": ("standalone", "using"),
        "bulk": ("defer_many", "defer_many_async"),
        "completion.calls": ("complete", "complete_async"),
        "connector": ("ExternalConnector",),
        "hookspecs": ("Description", "Diagnostic", "hookimpl"),
        "options": ("external",),
        "patching": ("install", "patch", "uninstall", "unpatch"),
        "plugins": ("describe", "register", "unregister"),
        "pool.connector": ("PoolConnector",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: pluggy alone would double the cost of importing this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
