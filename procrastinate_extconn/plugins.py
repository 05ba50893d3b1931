"""The plugins: found, asked in order, and remembered by the class of connection that they took.

The newest plugin is asked first: what was registered at run time, then the entry points, then the built-ins, and the
fallback always last.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pluggy

from . import builtin, fallback, hookspecs
from .exceptions import PluginWarning
from .hook_caller import HookCaller
from .hookspecs import PROJECT_NAME, Description, Diagnostic, Kind
from .options import unwrap

BUILT_IN = builtin.NAMES
_FALLBACK = "fallback"


class Failure(NamedTuple):
    """A plugin that could not be loaded."""

    name: str
    distribution: str | None
    reason: str


class Plugins:
    """The plugin manager. Made at the first use, by `plugins`."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        self.execute: HookCaller[Any] = HookCaller(self._manager, "execute_on_external")
        """What the first plugin that takes the connection returns for the query."""
        self.describe: HookCaller[Description | None] = HookCaller(
            self._manager, "describe_external", Description
        )
        """What the first plugin that knows the connection says of it; None if no plugin that describes knows it."""
        self.connect: HookCaller[Any] = HookCaller(self._manager, "connect_external")
        """A context manager from the first plugin that takes the pool, or None."""
        self.listen: HookCaller[Any] = HookCaller(self._manager, "listen_external")
        """The same, for a connection of the pool that listens."""
        self.read_error: HookCaller[Diagnostic | None] = HookCaller(
            self._manager, "read_external_error", Diagnostic
        )
        """What the first plugin that knows the class of an error reads from it, or None."""
        self._kinds: tuple[Kind, ...] | None = None
        self._warned: set[tuple[str, str]] = set()
        self.distributions: dict[str, importlib.metadata.Distribution] = {}
        self.failures: list[Failure] = []
        for name in BUILT_IN:
            self.register(importlib.import_module(f"procrastinate_extconn.builtin.{name}"), name)
        for entry_point in importlib.metadata.entry_points(group=PROJECT_NAME):
            self._load(entry_point)

    def _load(self, entry_point: importlib.metadata.EntryPoint) -> None:
        distribution = entry_point.dist
        name = entry_point.name
        if self._manager.has_plugin(name):
            name = f"{distribution.name if distribution else entry_point.module}:{name}"
        try:
            self.register(entry_point.load(), name)
        except KeyboardInterrupt:
            raise
        # One broken plugin must not stop the others. A module may call sys.exit(), and a driver in Rust may panic.
        except BaseException as exc:  # noqa: BLE001
            reason = f"{type(exc).__name__}: {exc}"
            self.failures.append(Failure(name, distribution.name if distribution else None, reason))
        else:
            if distribution:
                self.distributions[name] = distribution

    def warn_of_failures(self) -> None:
        """Warn of each plugin that could not be loaded."""
        for failure in self.failures:
            warnings.warn(
                f"procrastinate-extconn plugin {failure.name!r} of {failure.distribution} was left out: "
                f"{failure.reason}",
                PluginWarning,
                stacklevel=3,
            )

    def register(self, plugin: object, name: str | None = None) -> str:
        """Ask *plugin* before all others from now on.

        :raises pluggy.PluginValidationError: for a hook that does not exist, a wrong argument, an ``async def``.
        :raises ValueError: if it, or another one of that name, is registered already.
        """
        name = name or _default_name(plugin)
        taken = self._manager.get_name(plugin) or (self._manager.has_plugin(name) and name)
        if taken:
            raise ValueError(f"a plugin is registered as {taken!r} already")
        try:
            self._manager.register(plugin, name)
            self._validate(plugin, name)
        except pluggy.PluginValidationError:
            # Before 1.7, pluggy keeps what it refused.
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            raise
        # Among plugins that want to be asked last, pluggy asks the newest last.
        if self._manager.has_plugin(_FALLBACK):
            self._manager.unregister(name=_FALLBACK)
        self._manager.register(fallback.Fallback(self.names, self.is_taken), _FALLBACK)
        self._forget()
        return name

    def _forget(self) -> None:
        for caller in (self.execute, self.describe, self.connect, self.listen, self.read_error):
            caller.forget()
        self._kinds = None

    def _validate(self, plugin: object, name: str) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as exc:
            raise pluggy.PluginValidationError(plugin, f"plugin {name!r}: {exc}") from None
        callers = self._manager.get_hookcallers(plugin)
        if not callers:
            raise pluggy.PluginValidationError(
                plugin, f"plugin {name!r} implements no hook: is @hookimpl missing?"
            )
        for caller in callers:
            for implementation in caller.get_hookimpls():
                if implementation.plugin is plugin and (fault := _fault(implementation.function)):
                    raise pluggy.PluginValidationError(
                        plugin, f"plugin {name!r}: hook {caller.name!r} is {fault}"
                    )

    def unregister(self, plugin: object) -> None:
        """Ask *plugin* no more.

        :raises ValueError: if it is not registered.
        """
        name = self._manager.get_name(plugin)
        if name is None or name == _FALLBACK:
            raise ValueError(f"{type(plugin).__name__} object is not a registered plugin")
        self._manager.unregister(plugin)
        self.distributions.pop(name, None)
        self._forget()

    def names(self, hook: str = "execute_on_external") -> list[str]:
        """The names of the plugins that implement *hook*, in the order in which they are asked."""
        return [
            one.plugin_name
            for one in reversed(getattr(self._manager.hook, hook).get_hookimpls())
            if one.plugin_name != _FALLBACK and not (one.wrapper or one.hookwrapper)
        ]

    def get(self, name: str) -> object | None:
        """The plugin that is registered as *name*."""
        plugin: object | None = self._manager.get_plugin(name)
        return plugin

    def is_taken(self, conn: object) -> bool:
        """Whether a plugin that describes takes *conn*."""
        return self.describe(conn) is not None

    def claimed_by(self, conn: object) -> str | None:
        """The name of the plugin that has taken this class of connection before."""
        return self.execute.claimed_by(conn)

    def kinds(self) -> tuple[Kind, ...]:
        """Every kind of connection that a plugin names, those of the built-in plugins first."""
        if self._kinds is None:
            named: list[Kind] = []
            for one in self._manager.hook.external_kinds.get_hookimpls():
                try:
                    found: list[object] = list(one.function())  # type: ignore[call-overload]
                    if not all(isinstance(kind, Kind) for kind in found):
                        raise TypeError("not all of what it returned are Kind tuples")
                # One broken plugin must not hide the kinds of the others.
                except Exception as exc:  # noqa: BLE001
                    warnings.warn(
                        f"the plugin {one.plugin_name!r} failed in external_kinds: {type(exc).__name__}: {exc}",
                        PluginWarning,
                        stacklevel=3,
                    )
                else:
                    named += found  # type: ignore[arg-type]
            self._kinds = tuple(named)
        return self._kinds

    def first_time(self, subject: str, name: str) -> bool:
        """Whether *subject* comes up for the plugin *name* for the first time, so that it is warned about once."""
        first = (subject, name) not in self._warned
        self._warned.add((subject, name))
        return first


def _fault(function: Callable[..., object]) -> str | None:
    """What is wrong with an implementation of a hook that pluggy would call all the same."""
    if inspect.iscoroutinefunction(function):
        return (
            "an async def, which would claim every connection; make it a def that returns the awaitable of an inner "
            "coroutine"
        )
    if "self" in inspect.signature(function).parameters:
        return "the method of a class; register an instance of that class"
    return None


def _default_name(plugin: object) -> str:
    name = getattr(plugin, "__name__", None)
    return name if isinstance(name, str) else f"{type(plugin).__qualname__}-{id(plugin):x}"


_plugins: Plugins | None = None
_publishing = threading.Lock()


def plugins() -> Plugins:
    """The plugins, loaded at the first call.

    They are imported while no lock is held: an import may wait for another thread, which may wait for the lock.
    """
    global _plugins
    if _plugins is None:
        loaded = Plugins()
        with _publishing:
            if _plugins is None:
                _plugins = loaded
        if _plugins is loaded:
            loaded.warn_of_failures()
    return _plugins


def register(plugin: object, name: str | None = None) -> str:
    """Use *plugin*, a module or any object with our hooks, without packaging it. It is asked before all others.

    :param name: what errors call it; its ``__name__`` if it has one.
    :returns: the name.
    :raises pluggy.PluginValidationError: for a hook that does not exist, a wrong argument, or an ``async def``.
    :raises ValueError: if it, or another one of that name, is registered already.
    """
    return plugins().register(plugin, name)


def unregister(plugin: object) -> None:
    """Use *plugin* no more.

    :raises ValueError: if it is not registered.
    """
    plugins().unregister(plugin)


def describe(conn: object) -> Description:
    """Say what *conn* is and whether it is in a transaction, without a network round trip.

    :param conn: a connection, or what `external` made of one.
    :returns: driver, plugin, sync or async, and the state: ``"idle"`` (the next statement opens a transaction),
        ``"in_transaction"``, ``"autocommit"``, ``"failed"``, ``"closed"`` or ``"unknown"``.
    :raises UnsupportedConnection: if no plugin takes it.
    """
    conn = unwrap(conn)
    found = plugins()
    description = found.describe(conn)
    if description is not None:
        return description
    blind = set(found.names()) - set(found.names("describe_external"))
    if not blind:
        raise fallback.Fallback(found.names, found.is_taken).refusal(conn)
    cls = conn.__class__
    return Description(
        driver=cls.__module__.partition(".")[0],
        plugin=found.claimed_by(conn) or "unknown",
        is_async=hasattr(cls, "__aenter__"),
        state="unknown",
    )
