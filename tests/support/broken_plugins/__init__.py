"""Plugins that break the contract, each in its own way, and names the clause that has to catch it."""

from __future__ import annotations

from . import (
    afterthoughts,
    claims,
    errors,
    formats,
    interruptions,
    pools,
    session,
    states,
    texts,
    transactions,
    values,
)
from .base import Fault, Right, RightAsync, faults

FAULTS = faults(Fault)

__all__ = [
    "FAULTS",
    "Fault",
    "Right",
    "RightAsync",
    "afterthoughts",
    "claims",
    "errors",
    "formats",
    "interruptions",
    "pools",
    "session",
    "states",
    "texts",
    "transactions",
    "values",
]
