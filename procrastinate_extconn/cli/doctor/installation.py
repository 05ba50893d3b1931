"""The doctor on what is installed: Procrastinate, and the plugins."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from procrastinate.connector import BaseConnector
from procrastinate.types import JobToDefer

from ... import overrides, own_work, patching, wire
from ...exceptions import ExternalConnectionError
from ..plugins import loaded_plugins
from .findings import Finding


def interface() -> Iterator[Finding]:
    """What there is of Procrastinate's that the layer stands on."""
    found = importlib.metadata.version("procrastinate")
    methods = [name for name in patching.WITH_CONNECTION if hasattr(BaseConnector, name)]
    keyword = overrides.is_folded()
    if not methods and not keyword:
        yield _problem(f"{found}, whose connectors know nothing of external connections")
        return
    shape = [f"the {len(methods)} methods *_with_connection"] if methods else []
    shape += ["the connection= keyword"] if keyword else []
    text = f"{found}: install() patches {' and '.join(shape)} of its connectors"
    if "execute_query_one_with_connection" not in methods and not keyword:
        text += "; cancelling and asking for a status on a connection came with 3.10"
    yield Finding("procrastinate", "ok", text)
    yield from _jobs()
    if absent := own_work.missing():
        yield _problem(
            f"it has no {', '.join(sorted(absent))}: without_connection cannot tell all of Procrastinate's own work "
            "from an application's calls"
        )


def _jobs() -> Iterator[Finding]:
    try:
        more = wire.layout(JobToDefer).more
    except ExternalConnectionError as exc:
        yield _problem(str(exc))
    else:
        if more:
            text = f"its jobs have {', '.join(more)}, which is new here: it is sent under that name"
            yield Finding("procrastinate", "hint", text)


def _problem(text: str) -> Finding:
    fix = (
        "install a version of Procrastinate that procrastinate-extconn is tested with, 3.8 to 3.10"
    )
    return Finding("procrastinate", "problem", text, fix)


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
