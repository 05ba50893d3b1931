"""The connection that was forgotten: a call that changes something, and would commit it on the app's own connector."""

from __future__ import annotations

from typing import Any

from procrastinate.connector import BaseConnector

from . import ambient
from .exceptions import MEANT, OutsideTransaction
from .layer import layer
from .options import OutsideMode
from .own_work import is_own_work
from .queries import MANAGER_QUERIES, original, writes


def judge(
    connector: BaseConnector,
    query: str | None,
    mode: OutsideMode | None = None,
    *,
    is_async: bool = False,
) -> bool:
    """Refuse or warn of a call that has no connection, as `install` was told by ``without_connection``.

    Procrastinate's own work, calls that only read, and calls in a `standalone` block pass.

    :param connector: the app's own connector, which is about to run *query*.
    :param mode: the connector's own, if it has one.
    :returns: whether it has warned.
    :raises OutsideTransaction: in mode ``"error"``.
    """
    mode = mode or layer.without_connection_of(connector)
    if mode == "allow" or original(query) not in MANAGER_QUERIES or not writes(query or ""):
        return False
    if is_own_work() or ambient.is_standalone():
        return False
    # They take the plugin manager along.
    from .guard import READY, warn
    from .plugins import plugins

    begin = None
    joined: Any = getattr(connector, "connection", None)
    if hasattr(joined, "in_atomic_block"):
        # A connector may run on the connection of the thread in which its sync method is called.
        description = None if is_async else plugins().describe(joined)
        if is_async or joined.in_atomic_block or (description and description.state in READY):
            return False
        begin = description and description.begin
    text = _text(connector, begin)
    if mode == "error":
        raise OutsideTransaction(text)
    warn(text + ' (without_connection="allow" silences this)')
    return True


def _text(connector: BaseConnector, begin: str | None) -> str:
    advice = f"open a transaction with `{begin}`, " if begin else ""
    return (
        f"this call has no connection, so {type(connector).__name__} would commit it by itself, even if your "
        f"transaction is rolled back: {advice}pass the connection, as in configure(connection=...), or enter "
        f"procrastinate_extconn.using(connection). {MEANT}"
    )
