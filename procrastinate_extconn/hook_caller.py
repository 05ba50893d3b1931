"""Calls one hook. The plugin that accepted a class of connection is cached, and is asked first from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import pluggy

from .exceptions import ExternalConnectionError
from .fallback import type_name

R = TypeVar("R")

logger: logging.Logger = logging.getLogger("procrastinate_extconn")

_CACHED = 512


class HookCaller(Generic[R]):
    """Calls a hook as pluggy does, the first result that is not None winning, with as little as possible in between.

    :param manager: has the plugins and the hook's specification.
    :param hook: its name. The hook's first argument is the object that a plugin takes or leaves.
    :param expected: the class of its results. Another class is reported, and the claim is not cached.
    """

    def __init__(self, manager: pluggy.PluginManager, hook: str, expected: type = object) -> None:
        self._manager = manager
        self._hook = hook
        self._expected = expected
        self.forget()

    def forget(self) -> None:
        """Empty the cache: a plugin was registered or unregistered."""
        self._claims: dict[tuple[type, type], tuple[str, Callable[..., R]]] = {}

    def claimed_by(self, subject: object) -> str | None:
        """The name of the plugin that has taken this class of object before."""
        claim = self._claims.get((type(subject), subject.__class__))
        return claim[0] if claim else None

    def __call__(self, subject: object, *rest: object) -> R:
        claim = self._claims.get((type(subject), subject.__class__))
        if claim is not None:
            result = claim[1](subject, *rest)
            if result is not None:
                return result
        return self._ask_all(subject, *rest)

    def _ask_all(self, *values: object) -> R:
        """Ask one plugin after the other, inside all hook wrappers, and cache the plugin that took it."""
        claims = self._claims  # forget() may replace the attribute meanwhile
        caller: pluggy.HookCaller = getattr(self._manager.hook, self._hook)
        assert caller.spec is not None
        parameters = caller.spec.argnames
        arguments = dict(zip(parameters, values, strict=True))
        implementations = caller.get_hookimpls()
        wrapping = {one.plugin for one in implementations if one.wrapper or one.hookwrapper}
        askable = [one for one in reversed(implementations) if not (one.wrapper or one.hookwrapper)]
        plain = [one.plugin for one in askable if one.plugin not in wrapping]
        took: list[pluggy.HookImpl] = []

        def ask() -> Any:
            for one in askable:
                result = one.function(*[arguments[name] for name in one.argnames])
                if result is not None:
                    took.append(one)
                    return result
            return None

        wrappers = self._manager.subset_hook_caller(self._hook, remove_plugins=plain)
        result: R = wrappers.call_extra([ask], arguments)
        if took:
            first = took[0]
            self._check(first, result)
            call: Any = first.function
            if wrapping or first.argnames != parameters:
                others = [plugin for plugin in plain if plugin is not first.plugin]
                call = _by_position(
                    self._manager.subset_hook_caller(self._hook, others), parameters
                )
            if len(claims) >= _CACHED:
                claims.clear()
            claims[type(values[0]), values[0].__class__] = first.plugin_name, call
            self._log(first.plugin_name, values[0])
        return result

    def _check(self, plugin: pluggy.HookImpl, result: object) -> None:
        if not isinstance(result, self._expected):
            raise ExternalConnectionError(
                f"the plugin {plugin.plugin_name!r} returned {type_name(type(result))} from {self._hook}: it should "
                f"return {self._expected.__name__} or None"
            )

    def _log(self, plugin: str, subject: object) -> None:
        connection_type = type_name(subject.__class__)
        logger.debug(
            "Plugin %s takes %s (%s)",
            plugin,
            connection_type,
            self._hook,
            extra={
                "action": "plugin_takes_connection",
                "plugin": plugin,
                "hook": self._hook,
                "connection_type": connection_type,
            },
        )


def _by_position(caller: pluggy.HookCaller, parameters: Sequence[str]) -> Callable[..., Any]:
    return lambda *values: caller(**dict(zip(parameters, values, strict=True)))
