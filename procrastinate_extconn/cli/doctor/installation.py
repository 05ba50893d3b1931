"""The doctor on what is installed: Procrastinate, and the plugins."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator

from procrastinate.connector import BaseConnector

from ... import patching
from ..plugins import loaded_plugins
from .findings import Finding


def interface() -> Finding:
    """Which shape of Procrastinate's interface there is to patch."""
    found = importlib.metadata.version("procrastinate")
    methods = [name for name in patching.WITH_CONNECTION if hasattr(BaseConnector, name)]
    keyword = "connection" in inspect.signature(BaseConnector.execute_query_all).parameters
    if not methods and not keyword:
        return Finding(
            "procrastinate",
            "problem",
            f"{found}, whose connectors know nothing of external connections",
            "pip install 'procrastinate>=3.8'",
        )
    shape = [f"{len(methods)} methods *_with_connection"] if methods else []
    shape += ["a connection= keyword"] if keyword else []
    text = f"{found}: install() patches the {' and '.join(shape)} of its connectors"
    if "execute_query_one_with_connection" not in methods and not keyword:
        text += "; cancelling and asking for a status on a connection came with 3.10"
    return Finding("procrastinate", "ok", text)


def plugin_findings() -> Iterator[Finding]:
    """Which plugins are asked, and which could not be loaded."""
    loaded = loaded_plugins()
    yield Finding("plugins", "ok", f"asked in this order: {', '.join(loaded.names())}")
    for failure in loaded.failures:
        yield Finding(
            "plugins",
            "problem",
            f"{failure.name} of {failure.distribution} was left out: {failure.reason}",
            f"pip install --upgrade {failure.distribution}, or uninstall it",
        )
