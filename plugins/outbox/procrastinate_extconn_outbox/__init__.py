"""Defer Procrastinate jobs from a transaction in another database: an outbox table and its relay."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .effects import once, once_async
    from .relaying import relay, relay_async
    from .tables import Tables
    from .writing import Outbox

__all__ = ["Outbox", "Tables", "once", "once_async", "relay", "relay_async"]

_HOMES = {
    "Outbox": "writing",
    "Tables": "tables",
    "once": "effects",
    "once_async": "effects",
    "relay": "relaying",
    "relay_async": "relaying",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: who writes to an outbox needs no relay."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
