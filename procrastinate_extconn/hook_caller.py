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

_REMEMBERED = 512


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
        """Remember nobody: a plugin has come or gone."""
        self._takers: dict[tuple[type, type], tuple[str, Callable[..., R]]] = {}

    def taker(self, subject: object) -> str | None:
        """The name of the plugin that has taken this class of object before."""
        taker = self._takers.get((type(subject), subject.__class__))
        return taker[0] if taker else None

    def __call__(self, subject: object, *rest: object) -> R:
        taker = self._takers.get((type(subject), subject.__class__))
        if taker is not None:
            result = taker[1](subject, *rest)
            if result is not None:
                return result
        return self._ask_everyone(subject, *rest)

    def _ask_everyone(self, *values: object) -> R:
        """Ask one plugin after the other, inside everyone's wrappers, and remember who took it."""
        takers = self._takers  # Whoever forgets meanwhile puts another in its place.
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
            taker = took[0]
            if not isinstance(result, self._expected):
                raise ExternalConnectionError(
                    f"the plugin {taker.plugin_name!r} returned {type_name(type(result))} from {self._hook}: it should "
                    f"return {self._expected.__name__} or None"
                )
            call: Any = taker.function
            if wrapping or taker.argnames != parameters:
                others = [plugin for plugin in plain if plugin is not taker.plugin]
                call = _by_position(
                    self._manager.subset_hook_caller(self._hook, others), parameters
                )
            if len(takers) >= _REMEMBERED:
                takers.clear()
            takers[type(values[0]), values[0].__class__] = taker.plugin_name, call
            self._log(taker.plugin_name, values[0])
        return result

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
