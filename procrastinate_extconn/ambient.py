"""The ambient transaction."""

from __future__ import annotations


def connection(query: str) -> object | None:
    """The connection that *query* should run on, if a block says so."""
    return None
