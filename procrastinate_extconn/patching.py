"""Procrastinate's connectors learn to run a query on a connection that somebody else holds.

The wrappers go onto the classes, once; whether the layer is on is looked up at each call, for the process (`install`)
or for one connector (`patch`). So a person's own override stays, and its ``super()`` reaches the layer.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from procrastinate.connector import BaseConnector
from procrastinate.testing import InMemoryConnector

from . import ambient
from .layer import DEFAULT_MODE, layer
from .options import OutsideMode, check_mode
from .sync_async import wraps

if TYPE_CHECKING:
    from .connector import ExternalConnector

T = TypeVar("T")

METHODS = (
    "execute_query",
    "execute_query_one",
    "execute_query_all",
    "execute_query_async",
    "execute_query_one_async",
    "execute_query_all_async",
)
WITH_CONNECTION = {
    "execute_query_one_with_connection": "execute_query_one",
    "execute_query_all_with_connection": "execute_query_all",
    "execute_query_one_async_with_connection": "execute_query_one_async",
    "execute_query_all_async_with_connection": "execute_query_all_async",
}
"""What takes a connection by position -> the method of `ExternalConnector` that does it. 3.8 and 3.9 have two."""

_lock = threading.RLock()
_replaced: dict[tuple[type, str], tuple[Any, Any]] = {}
"""(class, name) -> (what stood there, what we put there)."""


def install(*, outside_transaction: OutsideMode | None = None) -> None:
    """Let every connector of Procrastinate's take any connection, those that are imported later included.

    May be called twice, and from any thread. `InMemoryConnector` stays in memory.

    :param outside_transaction: what to do when a job is deferred on a connection that would commit it by itself:
        ``"allow"``, ``"warn"`` (the default) or ``"error"``. None leaves the mode as it is.
    :raises ValueError: for another mode.
    """
    check_mode(outside_transaction)
    with _lock:
        if outside_transaction is not None:
            layer.outside_transaction = outside_transaction
        _wrap_classes()
        layer.installed = True


def uninstall() -> None:
    """Undo `install`, attribute for attribute.

    An attribute that somebody has wrapped since stays as it is, with a warning; our part of it does nothing more.
    Apps that were patched one by one stay patched.
    """
    with _lock:
        layer.installed = False
        layer.outside_transaction = DEFAULT_MODE
        if not layer.patched:
            _unwrap_classes()


def patch(app_or_connector: T, *, outside_transaction: OutsideMode | None = None) -> T:
    """Let the connector of one app take any connection.

    The connector that the app has now, and what its ``get_sync_connector()`` hands out. An app whose connector is
    replaced later is patched again by another call.

    :param app_or_connector: a `procrastinate.App` or a connector.
    :param outside_transaction: as in `install`, for this connector alone; None leaves it to `install`.
    :returns: *app_or_connector*.
    :raises TypeError: if it is neither.
    :raises ValueError: for another mode.
    """
    connector = _connector_of(app_or_connector)
    check_mode(outside_transaction)
    if isinstance(connector, InMemoryConnector):
        return app_or_connector
    with _lock:
        _wrap_classes()
        if outside_transaction is not None or connector not in layer.patched:
            layer.patched[connector] = outside_transaction
        if "get_sync_connector" not in vars(connector):
            vars(connector)["get_sync_connector"] = _SyncConnectorOf(connector)
    return app_or_connector


def unpatch(app_or_connector: T) -> T:
    """Undo `patch`.

    :returns: *app_or_connector*.
    :raises TypeError: if it is neither an app nor a connector.
    """
    connector = _connector_of(app_or_connector)
    with _lock:
        handed_out = vars(connector).get("get_sync_connector")
        if isinstance(handed_out, _SyncConnectorOf):
            del vars(connector)["get_sync_connector"]
            for other in handed_out.connectors:
                layer.patched.pop(other, None)
        layer.patched.pop(connector, None)
        if not layer.patched and not layer.installed:
            _unwrap_classes()
    return app_or_connector


class _SyncConnectorOf:
    """Stands in for ``connector.get_sync_connector`` and patches what that hands out."""

    def __init__(self, connector: BaseConnector) -> None:
        self._get = connector.get_sync_connector
        self._connector = connector
        self.connectors: list[BaseConnector] = []

    def __call__(self) -> BaseConnector:
        handed_out = self._get()
        if handed_out is not self._connector and handed_out not in layer.patched:
            with _lock:
                layer.patched[handed_out] = layer.mode_of(self._connector)
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


# -- the classes ----------------------------------------------------------------------------------------------------


def _wrap_classes() -> None:
    for cls in _connector_classes(BaseConnector):
        _wrap_class(cls)
    if (BaseConnector, "__init_subclass__") not in _replaced:
        _replace(BaseConnector, "__init_subclass__", classmethod(_wrap_subclass))


def _wrap_subclass(cls: type[BaseConnector], /, **kwargs: Any) -> None:
    super(BaseConnector, cls).__init_subclass__(**kwargs)
    with _lock:
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
        wrap_method(cls, name, functools.partial(_wrapper, name=name))


def wrap_method(cls: type, name: str, wrap: Callable[[Any], Any]) -> bool:
    """Put ``wrap(method)`` in the place of a method of Procrastinate's until `uninstall`, if it is not there yet.

    :returns: whether *cls* has the method.
    """
    with _lock:
        if name in vars(cls) and (cls, name) not in _replaced:
            _replace(cls, name, wrap(vars(cls)[name]))
    return name in vars(cls)


def _replace(cls: type, name: str, new: Any) -> None:
    _replaced[cls, name] = vars(cls).get(name), new
    setattr(cls, name, new)


def _unwrap_classes() -> None:
    for (cls, name), (old, new) in list(_replaced.items()):
        if vars(cls).get(name) is not new:
            warnings.warn(
                f"{cls.__name__}.{name} has been wrapped by somebody else since install(): it stays as it is",
                RuntimeWarning,
                stacklevel=3,
            )
            continue
        if old is None:
            delattr(cls, name)
        else:
            setattr(cls, name, old)
        del _replaced[cls, name]


def _wrapper(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    wrap = _wrap_with_connection if name in WITH_CONNECTION else _wrap_query
    return wraps(original, wrap(original, WITH_CONNECTION.get(name, name)))


def _wrap_query(original: Callable[..., Any], method: str) -> Callable[..., Any]:
    # *args, as one connector of Procrastinate's own, its command line's without an app, takes anything.
    def execute(self: BaseConnector, *args: Any, connection: Any = None, **arguments: Any) -> Any:
        if layer.is_on(self):
            if connection is None:
                connection = ambient.connection(args[0] if args else arguments.get("query"))
            if connection is not None:
                return getattr(_external(self, connection), method)(*args, **arguments)
        elif connection is not None:
            arguments["connection"] = connection
        return original(self, *args, **arguments)

    return execute


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
