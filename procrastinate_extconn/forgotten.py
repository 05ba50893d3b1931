"""The connection that was forgotten: a call that changes something, and would commit it on the app's own connector."""

from __future__ import annotations

from typing import Any

from procrastinate.connector import BaseConnector

from . import ambient
from .exceptions import OutsideTransaction
from .layer import layer
from .options import OutsideMode
from .own_work import is_own_work
from .queries import MANAGER_QUERIES, writes


def judge(
    connector: BaseConnector,
    query: str | None,
    mode: OutsideMode | None = None,
    *,
    is_async: bool = False,
) -> bool:
    """Refuse or warn of a call that was given no connection, as `install` was told by ``without_connection``.

    Procrastinate's own work, calls that only read, and calls in a `standalone` block pass.

    :param connector: the app's own connector, which is about to run *query*.
    :param mode: what is known of it already.
    :returns: whether it has warned.
    :raises OutsideTransaction: in mode ``"error"``.
    """
    mode = mode or layer.without_connection_of(connector)
    if mode == "allow" or query not in MANAGER_QUERIES or not writes(query):
        return False
    if is_own_work() or ambient.is_standalone():
        return False
    joined = getattr(connector, "connection", None)
    if hasattr(joined, "in_atomic_block"):
        # Procrastinate's connector for Django uses the connection of the thread in which its sync method runs.
        if is_async or _is_in_transaction(joined):
            return False
        begin = _begin(joined)
    else:
        begin = ""
    text = (
        f"{type(connector).__name__} would commit this call by itself, as it was given no connection, whatever becomes "
        f"of your transaction. {begin}Pass the connection, as in configure(connection=...), or enter "
        "procrastinate_extconn.using(connection). If the call is meant to commit by itself, enter "
        f"procrastinate_extconn.standalone(). {ambient.AFTER_COMMIT}"
    )
    if mode == "error":
        raise OutsideTransaction(text)
    from .guard import warn

    warn(text + ' (without_connection="allow" silences this)')
    return True


def _is_in_transaction(conn: Any) -> bool:
    from .guard import READY
    from .plugins import plugins

    description = plugins().describe(conn)
    return bool(conn.in_atomic_block) or (description is not None and description.state in READY)


def _begin(conn: Any) -> str:
    from .plugins import plugins

    description = plugins().describe(conn)
    begin = description.begin if description is not None else None
    return f"Open a transaction on its connection: `{begin}`. " if begin else ""
