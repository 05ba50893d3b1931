"""Which plugin is asked, in which order, and what happens to one that does not work."""

from __future__ import annotations

import logging
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pluggy
import psycopg
import pytest
from holding import AsyncFakeConnection, FakeConnection, FakeDriver, hold
from installing import Site

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector, hookimpl
from procrastinate_extconn import plugins as plugins_module
from procrastinate_extconn.exceptions import PluginWarning
from procrastinate_extconn.fallback import Fallback
from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.known_plugins import KNOWN, install_line, where
from procrastinate_extconn.plugins import BUILT_IN, plugins

SMALLEST = """
    from procrastinate_extconn import hookimpl

    class Connection: ...

    @hookimpl
    def execute_on_external(conn, query, args):
        if isinstance(conn, Connection):
            return [{"answer": 42}]
"""


pytestmark = pytest.mark.usefixtures("fresh")


def answer(conn: object) -> Any:
    """What a synchronous query on *conn* answers."""
    return ExternalConnector(conn).execute_query_all("SELECT 1")


class Driver:
    """A plugin for connections of some class, without `describe_external`."""

    def __init__(self, answer: str, cls: type = FakeConnection) -> None:
        self.answer = answer
        self.cls = cls
        self.asked = 0

    @hookimpl
    def execute_on_external(self, conn: object, query: str, args: Mapping[str, Any]) -> Any:
        self.asked += 1
        return [{"answer": self.answer}] if isinstance(conn, self.cls) else None


class LastDriver(Driver):
    """The same, asked as late as can be."""

    @hookimpl(trylast=True)
    def execute_on_external(self, conn: object, query: str, args: Mapping[str, Any]) -> Any:
        return super().execute_on_external(conn, query, args)


class Tracer:
    """A hook wrapper, which is called with each plugin's connections."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl(wrapper=True)
    def execute_on_external(self, conn: object) -> Iterator[None]:
        rows = yield
        self.seen.append(rows)
        return rows


# -- discovery --------------------------------------------------------------------------------------------------------


def test_a_distribution_with_an_entry_point_is_used(site: Site) -> None:
    """A distribution of one module and one entry point is all that it takes."""
    site.install("their-driver", SMALLEST, "theirs")
    import their_driver

    assert answer(their_driver.Connection()) == [{"answer": 42}]
    assert plugins().names().index("theirs") < plugins().names().index("sqlalchemy")


def test_an_entry_point_replaces_a_built_in(site: Site, dsn: str) -> None:
    """A third-party plugin takes the connections of a built-in, even under the built-in's name."""
    site.install(
        "better-psycopg",
        """
        import psycopg
        from procrastinate_extconn import Description, hookimpl

        @hookimpl
        def execute_on_external(conn, query, args):
            if isinstance(conn, psycopg.Connection):
                return [{"answer": "better"}]

        @hookimpl
        def describe_external(conn):
            if isinstance(conn, psycopg.Connection):
                return Description("psycopg", "better", False, "in_transaction")
        """,
        "psycopg",
    )
    assert plugins().names().index("better-psycopg:psycopg") < plugins().names().index("psycopg")
    with psycopg.connect(dsn) as conn:
        assert answer(conn) == [{"answer": "better"}]
        assert extconn.describe(conn).plugin == "better"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_driver_that_is_not_there", "ModuleNotFoundError: No module named 'a_driver"),
        ("raise OSError('libpq is missing')", "OSError: libpq is missing"),
        ("import sys; sys.exit('run setup first')", "SystemExit: run setup first"),
        (SMALLEST.replace("external(", "extrenal("), "unknown hook 'execute_on_extrenal'"),
        ("", "plugin 'broken' implements no hook: is @hookimpl missing?"),
    ],
    ids=["import", "exception", "exit", "hook", "empty"],
)
def test_a_plugin_that_fails_takes_nothing_else_down(site: Site, source: str, reason: str) -> None:
    """A plugin that cannot be loaded is left out with a warning: its name, where it is from, and why."""
    site.install("broken-driver", source, "broken")
    site.install("their-driver", SMALLEST, "theirs")
    with pytest.warns(PluginWarning) as caught:
        plugins()
    (warning,) = caught
    assert "plugin 'broken' of broken-driver was left out: " in str(warning.message)
    assert reason in str(warning.message)
    assert "broken" not in plugins().names()
    assert "theirs" in plugins().names()


def test_a_plugin_may_install_the_layer_from_a_thread_while_it_is_imported(site: Site) -> None:
    """Plugins are imported while no lock is held."""
    site.install(
        "their-driver",
        "import threading, procrastinate_extconn\n"
        "thread = threading.Thread(target=procrastinate_extconn.install)\n"
        "thread.start()\n"
        "thread.join(60)\n"
        "assert not thread.is_alive()\n" + textwrap.dedent(SMALLEST),
        "theirs",
    )
    assert "theirs" in plugins().names()
    extconn.uninstall()


# -- register and unregister ------------------------------------------------------------------------------------------


def test_the_newest_plugin_is_asked_first() -> None:
    """What is registered later takes the connection, also one that another plugin has taken before."""
    extconn.register(Driver("first"), "first")
    assert answer(FakeConnection()) == [{"answer": "first"}]
    extconn.register(Driver("second"), "second")
    assert answer(FakeConnection()) == [{"answer": "second"}]
    assert plugins().names()[:2] == ["second", "first"]


def test_unregistering_gives_the_connection_back() -> None:
    """Once a plugin is unregistered, the one before it takes the connection again, or nobody does."""
    first, second = Driver("first"), Driver("second")
    extconn.register(first, "first")
    extconn.register(second, "second")
    assert answer(FakeConnection()) == [{"answer": "second"}]
    extconn.unregister(second)
    assert answer(FakeConnection()) == [{"answer": "first"}]
    extconn.unregister(first)
    with pytest.raises(extconn.UnsupportedConnection):
        answer(FakeConnection())


def test_register_returns_the_name() -> None:
    """A plugin is called what it was told, or else what it calls itself."""
    module = types.ModuleType("their_module")
    exec(textwrap.dedent(SMALLEST), vars(module))
    assert extconn.register(Driver("x"), "mine") == "mine"
    assert extconn.register(module) == "their_module"
    assert extconn.register(Driver("x")).startswith("Driver-")


def test_a_plugin_is_registered_once() -> None:
    """The same plugin, or another one of the same name, is refused."""
    driver = Driver("x")
    extconn.register(driver, "mine")
    for plugin, name in (driver, "again"), (Driver("y"), "mine"):
        with pytest.raises(ValueError, match="is registered as 'mine' already"):
            extconn.register(plugin, name)


def test_only_what_is_registered_is_unregistered() -> None:
    """Unregistering anything else says what it was."""
    with pytest.raises(ValueError, match="Driver object is not a registered plugin"):
        extconn.unregister(Driver("x"))


class Misspelt:
    """A plugin with a hook that does not exist."""

    @hookimpl
    def execute_on_extrenal(self, conn: object, query: str, args: object) -> None: ...


class WrongArgument:
    """A plugin whose hook asks for what it does not get."""

    @hookimpl
    def execute_on_external(self, conn: object, qurey: str) -> None: ...


class Async:
    """A plugin whose hook would claim every connection."""

    @hookimpl
    async def execute_on_external(self, conn: object, query: str, args: object) -> None: ...


class Empty:
    """A plugin that forgot its decorators."""

    def execute_on_external(self, conn: object, query: str, args: object) -> None: ...


class Unmade:
    """A plugin that is a class where an object of it was meant."""

    @hookimpl
    def execute_on_external(self, conn: object, query: str, args: object) -> None: ...


@pytest.mark.parametrize(
    ("plugin", "fault"),
    [
        (Misspelt(), "unknown hook 'execute_on_extrenal'"),
        (WrongArgument(), "hook 'execute_on_external'\n.*'qurey'"),
        (Async(), "hook 'execute_on_external' is an async def"),
        (Empty(), "implements no hook: is @hookimpl missing"),
        (Unmade, "hook 'execute_on_external' is the method of a class"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_plugin_that_breaks_the_contract_is_refused(plugin: object, fault: str) -> None:
    """A misspelt hook or argument, or an ``async def``, is an error that names the plugin, and leaves nothing."""
    before = plugins().names()
    with pytest.raises(
        pluggy.PluginValidationError, match=f"(?s)[Pp]lugin 'mine'.*{fault}"
    ) as caught:
        extconn.register(plugin, "mine")
    assert caught.value.plugin is plugin
    assert plugins().names() == before
    with pytest.raises(extconn.UnsupportedConnection):
        answer(FakeConnection())
    extconn.register(Driver("x"), "mine")
    assert answer(FakeConnection()) == [{"answer": "x"}]


# -- who is asked -----------------------------------------------------------------------------------------------------


def test_a_claim_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    """Once a plugin has taken a connection of some class, nobody else is asked about that class."""
    taker, other = Driver("taker"), Driver("other", cls=int)
    extconn.register(taker, "taker")
    extconn.register(other, "other")
    with caplog.at_level(logging.DEBUG, "procrastinate_extconn"):
        answer(FakeConnection())
        answer(FakeConnection())
    assert (taker.asked, other.asked) == (2, 1)
    (record,) = caplog.records
    assert (record.action, record.plugin) == ("plugin_takes_connection", "taker")


def test_wrappers_run_around_a_remembered_claim() -> None:
    """A hook wrapper sees each query, the first and those after the claim is remembered."""
    tracer = Tracer()
    extconn.register(tracer, "tracer")
    extconn.register(Driver("x"), "driver")
    for _ in range(3):
        assert answer(FakeConnection()) == [{"answer": "x"}]
    assert tracer.seen == [[{"answer": "x"}]] * 3
    extconn.unregister(tracer)
    answer(FakeConnection())
    assert len(tracer.seen) == 3


def test_a_wrapper_that_comes_later_sees_a_remembered_claim() -> None:
    """A hook wrapper that is registered after a claim was remembered sees the queries from then on."""
    extconn.register(Driver("x"), "driver")
    answer(FakeConnection())
    tracer = Tracer()
    extconn.register(tracer, "tracer")
    answer(FakeConnection())
    assert len(tracer.seen) == 1


class Proxy:
    """What tracing libraries put around a connection: its ``__class__`` says what is inside."""

    def __init__(self, wrapped: object) -> None:
        self._wrapped = wrapped

    @property
    def __class__(self) -> Any:
        return type(self._wrapped)


class OtherConnection:
    """A connection of another driver."""


def test_proxies_of_one_class_are_told_apart() -> None:
    """Two connections in the same kind of proxy go each to the plugin of what is inside."""
    extconn.register(Driver("fake"), "fake")
    extconn.register(Driver("other", cls=OtherConnection), "other")
    for _ in range(2):
        assert answer(Proxy(FakeConnection())) == [{"answer": "fake"}]
        assert answer(Proxy(OtherConnection())) == [{"answer": "other"}]
        assert answer(OtherConnection()) == [{"answer": "other"}]


def test_a_subclass_goes_to_its_drivers_plugin() -> None:
    """A person's subclass of a driver's connection is taken as the driver's own is."""

    class Mine(FakeConnection):
        pass

    extconn.register(Driver("x"), "driver")
    assert answer(Mine()) == [{"answer": "x"}]


@pytest.mark.parametrize("cls", [Driver, LastDriver])
def test_the_fallback_is_asked_last(cls: type[Driver]) -> None:
    """No plugin is asked after the one that refuses, even if it wants to be asked last and came later."""
    extconn.register(Driver("other", cls=int), "other")
    extconn.register(cls("x"), "driver")
    assert answer(FakeConnection()) == [{"answer": "x"}]


def test_a_plugin_may_want_to_be_asked_last() -> None:
    """A plugin that wants to be asked last is, even though it is the newest."""
    extconn.register(Driver("first"), "first")
    extconn.register(LastDriver("last"), "last")
    assert answer(FakeConnection()) == [{"answer": "first"}]


# -- a plugin without describe_external -------------------------------------------------------------------------------


async def test_rows_at_once_in_an_async_call_are_returned_with_one_warning() -> None:
    """Where no one can say that a connection is sync, its rows are used, and one warning names the plugin."""
    extconn.register(Driver("x"), "blind")
    connector = ExternalConnector(FakeConnection())
    with pytest.warns(
        PluginWarning, match="the plugin 'blind' answered an asynchronous call at once"
    ):
        assert await connector.execute_query_all_async("SELECT 1") == [{"answer": "x"}]
    assert await connector.execute_query_all_async("SELECT 1") == [{"answer": "x"}]


def test_its_connection_is_in_an_unknown_state() -> None:
    """`describe` knows the plugin that took such a connection, and nothing of its state."""
    extconn.register(Driver("x"), "blind")
    answer(FakeConnection())
    description = extconn.describe(FakeConnection())
    assert (description.plugin, description.state) == ("blind", "unknown")


class BlindAsyncDriver:
    """A plugin for asynchronous connections, without `describe_external`."""

    def __init__(self, result: Callable[[], Any]) -> None:
        self.result = result

    @hookimpl
    def execute_on_external(self, conn: object) -> Any:
        return self.result() if isinstance(conn, AsyncFakeConnection) else None


def test_an_awaitable_in_a_sync_call_is_a_mismatch() -> None:
    """Where a plugin answers a sync call by a coroutine, it is closed before anything ran."""
    ran: list[str] = []

    async def rows() -> None:
        ran.append("rows")

    extconn.register(BlindAsyncDriver(rows), "blind")
    with pytest.raises(extconn.SyncAsyncMismatch, match="defer_async"):
        answer(AsyncFakeConnection())
    assert not ran


def test_what_is_neither_rows_nor_awaitable_is_the_plugins_fault() -> None:
    """A plugin that returns something else is named, rather than the connection blamed."""
    extconn.register(BlindAsyncDriver(tuple), "odd")
    with pytest.raises(extconn.ExternalConnectionError, match="the plugin 'odd' returned tuple"):
        answer(AsyncFakeConnection())


# -- what nobody takes ------------------------------------------------------------------------------------------------


def test_an_unknown_object_is_refused_by_its_type() -> None:
    """The error names the type, the plugins that were asked, and what to do."""
    extconn.register(FakeDriver(), "fake")
    with pytest.raises(extconn.UnsupportedConnection) as caught:
        answer(Site)
    asked = ", ".join(plugins().names())
    assert asked.startswith("fake, ")
    assert str(caught.value) == (
        f"procrastinate-extconn does not support external connections of type type: no plugin takes it "
        f'(asked: {asked}). Pass an open connection, or write a plugin: see "Write a driver plugin" in the '
        "documentation."
    )
    assert isinstance(caught.value, extconn.ExternalConnectionError)


def test_who_only_looks_on_is_not_asked() -> None:
    """A plugin of wrappers alone is neither named among those that were asked, nor thought to know an object."""
    extconn.register(Tracer(), "tracer")
    with pytest.raises(extconn.UnsupportedConnection) as caught:
        answer(object())
    assert "tracer" not in str(caught.value)
    with pytest.raises(extconn.UnsupportedConnection):
        extconn.describe(object())


def test_an_unknown_connection_that_can_be_entered_is_not_told_to_be() -> None:
    """A connection of an unknown driver may well be a context manager and an awaitable itself."""

    class Connection:
        __enter__ = __exit__ = __aenter__ = __aexit__ = __await__ = None

    with pytest.raises(extconn.UnsupportedConnection, match="write a plugin"):
        answer(Connection())


def test_a_wrapper_is_refused_with_the_attribute_that_is_taken(dsn: str) -> None:
    """An object that holds a connection is told to pass that, and a property of it that raises does no harm."""

    class Wrapper:
        def __init__(self, conn: object) -> None:
            self.connection = conn

        @property
        def raw_connection(self) -> object:
            raise RuntimeError("not connected")

    with (
        psycopg.connect(dsn) as conn,
        pytest.raises(extconn.UnsupportedConnection, match=r"pass its `\.connection`"),
    ):
        answer(Wrapper(conn))
    with pytest.raises(extconn.UnsupportedConnection, match="Pass an open connection"):
        answer(Wrapper(object()))


def test_a_dsn_is_refused_without_being_shown() -> None:
    """A connection string is not a connection, and its password is not for a log."""
    with pytest.raises(extconn.UnsupportedConnection, match="A DSN is not a connection") as caught:
        answer("postgresql://scott:tiger@localhost/db")
    assert "tiger" not in str(caught.value)


def test_a_known_driver_without_its_plugin_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a plugin for the driver exists and is not installed, the error is the command that installs it."""
    monkeypatch.setattr(plugins_module.importlib.metadata, "entry_points", lambda group: ())
    asyncpg = types.ModuleType("asyncpg")
    asyncpg.Connection = type("Connection", (), {"__module__": "asyncpg.connection"})
    monkeypatch.setitem(sys.modules, "asyncpg", asyncpg)
    with pytest.raises(extconn.UnsupportedConnection) as caught:
        answer(asyncpg.Connection())
    assert str(caught.value) == (
        "procrastinate-extconn does not support external connections of type asyncpg.connection.Connection: "
        "no plugin takes it (asked: sqlalchemy, psycopg). Install "
        f"procrastinate-extconn-asyncpg: run `{install_line('asyncpg')}`{where()}."
    )


@pytest.mark.parametrize("driver", KNOWN)
def test_each_driver_without_its_plugin_is_told_what_to_install(driver: str, dsn: str) -> None:
    """For every object of a driver, the error is the line that installs its plugin."""
    for kind in kinds_of(driver):
        if kind.missing():
            pytest.skip(f"not installed: {', '.join(kind.missing())}")
        with hold(kind, dsn) as external:
            refusal = str(Fallback(lambda: list(BUILT_IN)).refusal(external.conn))
        assert f"run `pip install ./plugins/{driver}`" in refusal, kind.id
