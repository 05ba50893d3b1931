"""Who took a class of connection is asked first from then on, for as long as that is right."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pluggy
import pytest

from procrastinate_extconn import hookimpl, hookspecs
from procrastinate_extconn.hook_caller import HookCaller


class Connection:
    """Belongs to a plugin of these tests."""


class Plugin:
    """Takes one class of connection, and counts how often it was asked."""

    def __init__(self, name: str, takes: type = Connection) -> None:
        self.name = name
        self.takes = takes
        self.asked = 0

    @hookimpl
    def execute_on_external(self, conn: object, query: str) -> Any:
        self.asked += 1
        return [{"by": self.name}] if isinstance(conn, self.takes) else None


class Wrapper:
    """Wraps what the others do, as a tracing plugin would."""

    @hookimpl(wrapper=True)
    def execute_on_external(self) -> Generator[None, Any, Any]:
        return [*(yield), {"by": "wrapper"}]


@pytest.fixture
def manager() -> pluggy.PluginManager:
    """A plugin manager of this test's own."""
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    return manager


@pytest.fixture
def caller(manager: pluggy.PluginManager) -> HookCaller[Any]:
    """Asks who runs a query."""
    return HookCaller(manager, "execute_on_external")


def ask(caller: HookCaller[Any]) -> Any:
    """Say who takes a connection."""
    return caller(Connection(), "SELECT 1", {})


def test_taker_alone_is_asked_again(manager: pluggy.PluginManager, caller: HookCaller[Any]) -> None:
    """Once a plugin has taken a connection, the others are asked no more about one of its class."""
    taker, other = Plugin("taker"), Plugin("other", takes=str)
    manager.register(taker)
    manager.register(other)
    assert [ask(caller) for _ in range(3)] == [[{"by": "taker"}]] * 3
    assert (taker.asked, other.asked) == (3, 1)


@pytest.mark.parametrize("times", [1, 2])
def test_wrapper_stays_around(
    manager: pluggy.PluginManager, caller: HookCaller[Any], times: int
) -> None:
    """A hook wrapper is called around the plugin that takes the connection, at the first call and from the cache."""
    manager.register(Plugin("taker"))
    manager.register(Wrapper())
    assert [ask(caller) for _ in range(times)][-1] == [{"by": "taker"}, {"by": "wrapper"}]


def test_gone_while_it_answers(manager: pluggy.PluginManager, caller: HookCaller[Any]) -> None:
    """A plugin that leaves while it is being asked is not remembered."""

    class Leaving(Plugin):
        @hookimpl
        def execute_on_external(self, conn: object, query: str, args: object) -> Any:
            manager.unregister(self)
            caller.forget()
            return super().execute_on_external(conn, query)

    manager.register(Plugin("stays"))
    manager.register(Leaving("leaves"))
    assert [ask(caller) for _ in range(2)] == [[{"by": "leaves"}], [{"by": "stays"}]]
