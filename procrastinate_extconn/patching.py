"""Procrastinate's connectors learn to run a query on a connection that somebody else holds.

The wrappers go onto the classes, once. Each call looks up whether the layer is on, for the process (`install`) or for
one connector (`patch`). So a person's own override stays, and its ``super()`` reaches the layer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from procrastinate import App
from procrastinate.connector import BaseConnector
from procrastinate.testing import InMemoryConnector

from . import ambient, forgotten, lazy_log, overrides, own_work, replacing
from .exceptions import ExternalConnectionError
from .layer import DEFAULT_MODE, Modes, layer
from .options import OutsideMode, check_modes
from .overrides import METHODS
from .sync_async import wraps

if TYPE_CHECKING:
    from .connector import ExternalConnector

T = TypeVar("T")

WITH_CONNECTION = {
    "execute_query_one_with_connection": "execute_query_one",
    "execute_query_all_with_connection": "execute_query_all",
    "execute_query_one_async_with_connection": "execute_query_one_async",
    "execute_query_all_async_with_connection": "execute_query_all_async",
}
"""What takes a connection by position -> the method of `ExternalConnector` that does it. 3.8 and 3.9 have two."""


def install(
    *,
    outside_transaction: OutsideMode | None = None,
    without_connection: OutsideMode | None = None,
) -> None:
    """Let every connector of Procrastinate's take any connection, those that are imported later included.

    May be called twice, and from any thread. `InMemoryConnector` stays in memory. None leaves a mode as it is.

    :param outside_transaction: what to do when a job is deferred on a connection that would commit it by itself:
        ``"allow"``, ``"warn"`` (the default) or ``"error"``.
    :param without_connection: what to do when an application defers, cancels or otherwise changes jobs and passes no
        connection, outside `using` and `standalone`. Procrastinate's own work is never refused: its worker, command
        line and shell. If it was never set, it is ``"error"`` where *outside_transaction* is, else ``"allow"``.
    :raises ValueError: for another mode.
    """
    modes = _prepared(outside_transaction, without_connection)
    with replacing.lock:
        layer.outside_transaction = modes.outside_transaction or layer.outside_transaction
        layer.without_connection = modes.without_connection or layer.without_connection
        watch()
        layer.installed = True


def uninstall() -> None:
    """Undo `install`, attribute for attribute.

    An attribute that somebody has wrapped since stays as it is, with a warning; our part of it does nothing more.
    Apps that were patched one by one stay patched.

    :raises ExternalConnectionError: inside a `using` block, whose calls would run outside its transaction.
    """
    if ambient.in_block():
        raise ExternalConnectionError(
            "uninstall() inside a using() block would let its calls run outside the transaction: leave the block first"
        )
    with replacing.lock:
        layer.installed = False
        layer.outside_transaction = DEFAULT_MODE
        layer.without_connection = None
        _restore()


def patch(
    app_or_connector: T,
    *,
    outside_transaction: OutsideMode | None = None,
    without_connection: OutsideMode | None = None,
) -> T:
    """Let the connector of one app take any connection.

    The connector that the app has now, what its ``get_sync_connector()`` hands out, and a connector that takes its
    place in ``app.replace_connector()``. Where a connector is given, that one alone.

    :param app_or_connector: a `procrastinate.App` or a connector.
    :param outside_transaction: as in `install`, for this connector alone; None leaves it to `install`.
    :param without_connection: as in `install`, for this connector alone; None leaves it to `install`.
    :returns: *app_or_connector*.
    :raises TypeError: if it is neither.
    :raises ValueError: for another mode.
    """
    connector = _connector_of(app_or_connector)
    modes = _prepared(outside_transaction, without_connection)
    with replacing.lock:
        if app_or_connector is not connector:
            layer.managers.add(app_or_connector.job_manager)  # type: ignore[attr-defined]
        _patch(connector, modes)
    return app_or_connector


def _prepared(outside: OutsideMode | None, without: OutsideMode | None) -> Modes:
    check_modes(outside_transaction=outside, without_connection=without)
    if "error" in (outside, without) or without == "warn":
        own_work.recognise()
    return Modes(outside, without)


def _patch(connector: BaseConnector, modes: Modes) -> None:
    watch()
    if isinstance(connector, InMemoryConnector):
        return
    before = layer.patched.get(connector, Modes())
    layer.patched[connector] = Modes(
        modes.outside_transaction or before.outside_transaction,
        modes.without_connection or before.without_connection,
    )
    if "get_sync_connector" not in vars(connector):
        vars(connector)["get_sync_connector"] = _SyncConnectorOf(connector)


def unpatch(app_or_connector: T) -> T:
    """Undo `patch`.

    :returns: *app_or_connector*.
    :raises TypeError: if it is neither an app nor a connector.
    """
    connector = _connector_of(app_or_connector)
    with replacing.lock:
        if app_or_connector is not connector:
            layer.managers.discard(app_or_connector.job_manager)  # type: ignore[attr-defined]
        handed_out = vars(connector).get("get_sync_connector")
        if isinstance(handed_out, _SyncConnectorOf):
            del vars(connector)["get_sync_connector"]
            for other in handed_out.connectors:
                layer.patched.pop(other, None)
        layer.patched.pop(connector, None)
        _restore()
    return app_or_connector


def _restore() -> None:
    if not layer.patched and not layer.installed:
        replacing.restore(keep=own_work.__name__ if layer.strict else "")


class _SyncConnectorOf:
    """Stands in for ``connector.get_sync_connector`` and patches what that hands out."""

    def __init__(self, connector: BaseConnector) -> None:
        self._get = connector.get_sync_connector
        self._connector = connector
        self.connectors: list[BaseConnector] = []

    def __call__(self) -> BaseConnector:
        handed_out = self._get()
        if handed_out is not self._connector and handed_out not in layer.patched:
            with replacing.lock:
                layer.patched[handed_out] = layer.patched.get(self._connector, Modes())
            self.connectors.append(handed_out)
        return handed_out


def _connector_of(app_or_connector: object) -> BaseConnector:
    found = (
        app_or_connector
        if isinstance(app_or_connector, BaseConnector)
        else getattr(app_or_connector, "connector", None)
    )
    if not isinstance(found, BaseConnector):
        raise TypeError(
            f"expected a procrastinate.App or a connector, got {type(app_or_connector).__name__}"
        )
    return found


def _following(original: Callable[..., Any]) -> Callable[..., Any]:
    """`App.replace_connector`, so that the new connector of a patched app is patched as long as it is there."""

    @functools.wraps(original)
    @contextlib.contextmanager
    def replace_connector(self: App, connector: BaseConnector) -> Generator[App]:
        modes = layer.patched.get(self.connector, Modes())
        with original(self, connector) as app:
            follows = self.job_manager in layer.managers and connector not in layer.patched
            if follows:
                with replacing.lock:
                    _patch(connector, modes)
            try:
                yield app
            finally:
                if follows:
                    unpatch(connector)

    return replace_connector


# -- the classes ----------------------------------------------------------------------------------------------------


def watch() -> None:
    """Put the wrappers onto Procrastinate's classes, until `uninstall`. By themselves they change nothing."""
    with replacing.lock:
        for cls in _connector_classes(BaseConnector):
            _wrap_class(cls)
        replacing.replace(BaseConnector, "__init_subclass__", classmethod(_wrap_subclass), __name__)
        replacing.wrap(App, "replace_connector", _following, __name__)
        overrides.watch()
        lazy_log.watch()


def _wrap_subclass(cls: type[BaseConnector], /, **kwargs: Any) -> None:
    super(BaseConnector, cls).__init_subclass__(**kwargs)
    if _is_procrastinates(cls):
        _wrap_class(cls)


def _connector_classes(cls: type[BaseConnector]) -> Iterator[type[BaseConnector]]:
    if _is_procrastinates(cls):
        yield cls
    for subclass in cls.__subclasses__():
        yield from _connector_classes(subclass)


def _is_procrastinates(cls: type[BaseConnector]) -> bool:
    return cls.__module__.partition(".")[0] == "procrastinate" and cls is not InMemoryConnector


def _wrap_class(cls: type[BaseConnector]) -> None:
    for name in (*METHODS, *WITH_CONNECTION):
        replacing.wrap(cls, name, functools.partial(_wrapper, name=name), __name__)


def _wrapper(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    wrap = _wrap_with_connection if name in WITH_CONNECTION else _wrap_query
    return wraps(original, wrap(original, WITH_CONNECTION.get(name, name)))


def _wrap_query(original: Callable[..., Any], method: str) -> Callable[..., Any]:
    is_async = method.endswith("_async")

    # *args, as one connector of Procrastinate's own, its command line's without an app, takes anything.
    def execute(self: BaseConnector, *args: Any, connection: Any = None, **arguments: Any) -> Any:
        is_on = layer.is_on(self)
        if connection is not None and not is_on:
            return original(self, *args, connection=connection, **arguments)
        query = args[0] if args else arguments.get("query")
        if connection is None and not isinstance(self, InMemoryConnector):
            connection = ambient.connection(query)
        if connection is not None:
            if not is_on:
                raise _not_patched(self)
            return getattr(_external(self, connection), method)(*args, **arguments)
        if is_on and forgotten.judge(self, query, is_async=is_async) and not is_async:
            with ambient.standalone():  # It may call the async method, and is warned of once.
                return original(self, *args, **arguments)
        return original(self, *args, **arguments)

    return execute


def _not_patched(connector: BaseConnector) -> ExternalConnectionError:
    return ExternalConnectionError(
        f"this {type(connector).__name__} is not patched, so the call would run outside the transaction of this "
        "using() block: call procrastinate_extconn.install(), or patch(app), or leave the block with "
        "procrastinate_extconn.standalone()"
    )


def _wrap_with_connection(original: Callable[..., Any], method: str) -> Callable[..., Any]:
    def execute(self: BaseConnector, connection: Any, query: str, **arguments: Any) -> Any:
        if layer.is_on(self):
            return getattr(_external(self, connection), method)(query, **arguments)
        return original(self, connection, query, **arguments)

    return execute


@functools.cache
def _external_connector() -> type[ExternalConnector]:
    """Import it at the first call on an external connection, for it takes the plugin manager along."""
    from .connector import ExternalConnector

    return ExternalConnector


def _external(connector: Any, connection: object) -> ExternalConnector:
    return _external_connector()(
        connection,
        # Some of Procrastinate's connectors keep them in private attributes, the others in public ones.
        json_dumps=getattr(connector, "_json_dumps", None) or connector.json_dumps,
        json_loads=getattr(connector, "_json_loads", None) or connector.json_loads,
        outside_transaction=layer.mode_of(connector),
    )
