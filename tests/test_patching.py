"""The layer reaches every connector of Procrastinate's and of those that derive from it, and leaves no trace."""

from __future__ import annotations

import functools
import gc
import importlib.util
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import AsyncFakeConnection, FakeConnection, FakeDriver, run_python
from procrastinate.connector import BaseConnector
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException, NoResult
from procrastinate.testing import InMemoryConnector

import procrastinate_extconn as extconn
from procrastinate_extconn.layer import layer

pytestmark = pytest.mark.usefixtures("layer_off")
CONTRIB = {
    "procrastinate.contrib.psycopg2": "psycopg2",
    "procrastinate.contrib.sqlalchemy": "sqlalchemy",
    "procrastinate.contrib.aiopg": "aiopg",
    "procrastinate.contrib.django.django_connector": "django",
}


class Plain(BaseConnector):
    """A connector that an application wrote, on its own driver."""

    def get_sync_connector(self) -> BaseConnector:
        return self


class Careful(procrastinate.SyncPsycopgConnector):
    """A person's own connector, with an override that they care about."""

    overridden = 0

    def execute_query_all_with_connection(
        self, connection: Any, query: Any, **arguments: Any
    ) -> Any:
        self.overridden += 1
        return super().execute_query_all_with_connection(connection, query, **arguments)


@pytest.fixture
def classes() -> list[type[BaseConnector]]:
    """All connector classes of Procrastinate's that can be imported here."""
    for module, requirement in CONTRIB.items():
        if importlib.util.find_spec(requirement):
            importlib.import_module(module)
    return [
        cls for cls in _subclasses(BaseConnector) if cls.__module__.startswith("procrastinate.")
    ]


def _subclasses(cls: type[BaseConnector]) -> Iterator[type[BaseConnector]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _subclasses(subclass)


def _attributes(classes: list[type[BaseConnector]]) -> dict[tuple[type, str], Any]:
    return {(cls, name): value for cls in classes for name, value in vars(cls).items()}


def _app(connector: BaseConnector | None = None) -> procrastinate.App:
    return procrastinate.App(connector=connector or Plain())


def _defer(app: procrastinate.App, conn: object | None = None) -> int:
    return app.configure_task("process_order", connection=conn or FakeConnection()).defer(
        order_id=1
    )


# -- install and uninstall --------------------------------------------------------------------------------------------


def test_install_reaches_every_connector(classes: list[type], driver: FakeDriver) -> None:
    """Each connector class of Procrastinate's but the one in memory defers on any connection."""
    extconn.install()
    for cls in classes:
        if cls is not InMemoryConnector:
            rows = cls().execute_query_all_with_connection(FakeConnection(), "SELECT 1")
            assert rows == [{"id": 42}], cls


def test_install_reaches_what_a_person_derived_before(driver: FakeDriver) -> None:
    """A connector class that existed before `install` defers on any connection."""
    extconn.install()
    assert _defer(_app(Plain())) == 42


def test_install_reaches_what_a_person_derives_after(driver: FakeDriver) -> None:
    """A connector class that is made after `install` defers on any connection."""
    extconn.install()

    class Later(procrastinate.SyncPsycopgConnector):
        pass

    assert _defer(_app(Later())) == 42


def test_a_persons_override_stays_and_its_super_reaches_the_layer(driver: FakeDriver) -> None:
    """An override in a person's class runs, and its ``super()`` defers on any connection."""
    override = vars(Careful)["execute_query_all_with_connection"]
    extconn.install()
    connector = Careful()
    assert _defer(_app(connector)) == 42
    assert connector.overridden == 1
    assert vars(Careful)["execute_query_all_with_connection"] is override


def test_a_persons_class_without_override_is_left_alone() -> None:
    """Nothing is put onto a class that is not Procrastinate's."""
    before = dict(vars(Plain))
    extconn.install()
    assert dict(vars(Plain)) == before


@pytest.mark.skipif(not importlib.util.find_spec("psycopg2"), reason="not installed: psycopg2")
def test_install_reaches_what_is_imported_later(tmp_path: Path) -> None:
    """A module of `procrastinate.contrib` that is imported after `install` is reached, and restored in the end."""
    program = """
        import sys
        sys.path.insert(0, TESTS)
        import procrastinate, procrastinate_extconn as extconn
        from holding import FakeConnection, FakeDriver

        extconn.install()
        assert not any(name.startswith("procrastinate.contrib") for name in sys.modules)
        from procrastinate.contrib.psycopg2 import Psycopg2Connector

        extconn.register(FakeDriver(), "fake")
        app = procrastinate.App(connector=Psycopg2Connector())
        print(app.configure_task("t", connection=FakeConnection()).defer())
        wrapped = vars(Psycopg2Connector)["execute_query_all"]
        extconn.uninstall()
        print(vars(Psycopg2Connector)["execute_query_all"] is wrapped.__wrapped__)
    """
    assert run_python(program, TESTS=str(Path(__file__).with_name("support"))).split() == [
        "42",
        "True",
    ]


def test_the_connector_in_memory_stays_in_memory() -> None:
    """A job that a unit test defers on some object goes where `InMemoryConnector` keeps its jobs."""
    extconn.install()
    connector = InMemoryConnector()
    extconn.patch(connector)
    assert _defer(_app(connector), object()) in connector.jobs


def test_uninstall_restores_each_attribute(classes: list[type]) -> None:
    """After `uninstall`, each class has the very attributes that it had before, and no other."""
    before = _attributes(classes)
    extconn.install()
    assert _attributes(classes) != before
    extconn.uninstall()
    assert _attributes(classes) == before


def test_install_and_uninstall_are_idempotent(classes: list[type], driver: FakeDriver) -> None:
    """Installing twice is installing once, and so is uninstalling."""
    before = _attributes(classes)
    extconn.install()
    installed = _attributes(classes)
    extconn.install()
    assert _attributes(classes) == installed
    assert _defer(_app()) == 42
    assert len(driver.asked) == 1
    extconn.uninstall()
    extconn.uninstall()
    assert _attributes(classes) == before


def test_what_somebody_wrapped_since_stays_with_a_warning(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that somebody wrapped after `install` is named in a warning and left; our part of it is off."""
    original = BaseConnector.execute_query_all_with_connection
    extconn.install()
    ours = BaseConnector.execute_query_all_with_connection

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(BaseConnector, "execute_query_all_with_connection", theirs)
    name = "BaseConnector.execute_query_all_with_connection has been wrapped by somebody else"
    with pytest.warns(RuntimeWarning, match=name):
        extconn.uninstall()
    assert BaseConnector.execute_query_all_with_connection is theirs
    with pytest.raises(ConnectorException, match=r"^Plain does not support external connections$"):
        _defer(_app())
    monkeypatch.undo()
    extconn.uninstall()
    assert BaseConnector.execute_query_all_with_connection is original


def test_installing_over_a_later_wrapper_works(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After such a warning, `install` turns our part of the method on again, once."""
    extconn.install()
    ours = BaseConnector.execute_query_all_with_connection
    monkeypatch.setattr(
        BaseConnector,
        "execute_query_all_with_connection",
        lambda self, *args, **kwargs: ours(self, *args, **kwargs),
    )
    with pytest.warns(RuntimeWarning, match="wrapped by somebody else"):
        extconn.uninstall()
    extconn.install()
    assert _defer(_app()) == 42
    assert len(driver.asked) == 1
    monkeypatch.undo()


def test_threads_may_install_and_uninstall(classes: list[type]) -> None:
    """However many threads install and uninstall at once, nothing is wrapped twice or left behind."""
    before = _attributes(classes)
    start = threading.Barrier(8)
    errors: list[BaseException] = []

    def churn() -> None:
        start.wait()
        try:
            for _ in range(50):
                extconn.install()
                extconn.uninstall()
        except BaseException as exc:  # noqa: BLE001 - shown below
            errors.append(exc)

    threads = [threading.Thread(target=churn) for _ in range(start.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert _attributes(classes) == before


def test_methods_keep_their_signature(classes: list[type]) -> None:
    """A wrapped method looks as before to code that inspects it."""
    before = _looks(classes)
    extconn.install()
    assert _looks(classes) == before


def _looks(classes: list[type[BaseConnector]]) -> dict[Any, Any]:
    return {
        key: (inspect.signature(value), inspect.iscoroutinefunction(value), value.__doc__)
        for key, value in _attributes(classes).items()
        if key[1].startswith("execute_")
    }


# -- the mode of the transaction guard --------------------------------------------------------------------------------


def test_only_an_explicit_argument_changes_the_mode(driver: FakeDriver) -> None:
    """A second `install` without a mode leaves the first one's, and `uninstall` forgets it."""
    driver.state = "autocommit"
    extconn.install(outside_transaction="error")
    extconn.install()
    with pytest.raises(extconn.OutsideTransaction):
        _defer(_app())
    extconn.uninstall()
    extconn.install()
    with pytest.warns(extconn.exceptions.OutsideTransactionWarning):
        _defer(_app())


def test_a_patched_app_has_a_mode_of_its_own(driver: FakeDriver) -> None:
    """The mode given to `patch` is that app's alone, and another `patch` without one leaves it."""
    driver.state = "autocommit"
    extconn.install(outside_transaction="allow")
    strict = extconn.patch(_app(), outside_transaction="error")
    extconn.patch(strict)
    with pytest.raises(extconn.OutsideTransaction):
        _defer(strict)
    assert _defer(_app()) == 42


@pytest.mark.parametrize("turn_on", [extconn.install, functools.partial(extconn.patch, Plain())])
def test_a_mode_that_does_not_exist_is_refused(
    turn_on: Callable[..., Any], classes: list[type]
) -> None:
    """A misspelt mode is a `ValueError` that names the modes, and changes nothing."""
    before = _attributes(classes)
    with pytest.raises(ValueError, match="one of 'allow', 'warn', 'error', got 'eror'"):
        turn_on(outside_transaction="eror")
    assert _attributes(classes) == before


# -- patch and unpatch ------------------------------------------------------------------------------------------------


def test_patch_is_for_one_app(driver: FakeDriver) -> None:
    """The patched app takes any connection, another one does not."""
    patched, other = extconn.patch(_app()), _app()
    assert _defer(patched) == 42
    with pytest.raises(ConnectorException, match=r"^Plain does not support external connections$"):
        _defer(other)


def test_patch_takes_a_connector(driver: FakeDriver) -> None:
    """A connector can be patched before there is an app."""
    connector = Plain()
    assert extconn.patch(connector) is connector
    assert _defer(_app(connector)) == 42


def test_patch_and_unpatch_return_their_argument() -> None:
    """`app = extconn.patch(App(...))` reads well."""
    app = _app()
    assert extconn.patch(app) is app
    assert extconn.unpatch(app) is app


@pytest.mark.parametrize("function", [extconn.patch, extconn.unpatch])
def test_only_apps_and_connectors_are_patched(function: Callable[[object], object]) -> None:
    """Anything else is a `TypeError` that names its type."""
    with pytest.raises(TypeError, match=r"expected a procrastinate\.App or a connector, got dict"):
        function({})


def test_unpatch_restores_each_attribute(classes: list[type], driver: FakeDriver) -> None:
    """After `unpatch`, classes and connector have the very attributes that they had before."""
    connector = procrastinate.PsycopgConnector()
    before, own = _attributes(classes), dict(vars(connector))
    extconn.patch(_app(connector))
    extconn.unpatch(_app(connector))
    assert _attributes(classes) == before
    assert dict(vars(connector)) == own


def test_unpatching_what_was_not_patched_is_nothing(classes: list[type]) -> None:
    """`unpatch` of an app that was never patched changes nothing."""
    before = _attributes(classes)
    extconn.unpatch(_app())
    assert _attributes(classes) == before


def test_patch_reaches_the_connector_that_is_handed_out(driver: FakeDriver) -> None:
    """`PsycopgConnector` hands out another object for sync calls while it is not open: that takes any connection."""
    app = extconn.patch(_app(procrastinate.PsycopgConnector()))
    assert app.connector.get_sync_connector() is not app.connector
    assert _defer(app) == 42


def test_unpatch_reaches_the_connector_that_was_handed_out(driver: FakeDriver) -> None:
    """What `get_sync_connector()` handed out is patched no more either."""
    app = extconn.patch(_app(procrastinate.PsycopgConnector()))
    handed_out = app.connector.get_sync_connector()
    extconn.patch(other := _app())
    extconn.unpatch(app)
    with pytest.raises(AttributeError, match="'FakeConnection' object has no attribute 'cursor'"):
        handed_out.execute_query_all_with_connection(FakeConnection(), "SELECT 1")
    assert _defer(other) == 42


async def test_patch_reaches_async_calls(driver: FakeDriver) -> None:
    """A patched app defers asynchronously on any asynchronous connection."""
    app = extconn.patch(_app(procrastinate.PsycopgConnector()))
    deferrer = app.configure_task("process_order", connection=AsyncFakeConnection())
    assert await deferrer.defer_async() == 42


def test_a_patched_app_stays_patched_after_uninstall(driver: FakeDriver) -> None:
    """`uninstall` undoes `install`, not `patch`."""
    app = extconn.patch(_app())
    extconn.install()
    extconn.uninstall()
    assert _defer(app) == 42
    with pytest.raises(ConnectorException):
        _defer(_app())


def test_a_patched_app_stays_on_after_unpatch_where_installed(driver: FakeDriver) -> None:
    """`unpatch` undoes `patch`, not `install`."""
    extconn.install()
    app = extconn.unpatch(extconn.patch(_app()))
    assert _defer(app) == 42


def test_a_connector_that_replaces_a_patched_one_is_patched(driver: FakeDriver) -> None:
    """While a patched app has another connector that one is patched in its place, with the same modes."""
    driver.state = "autocommit"
    app = extconn.patch(_app(), outside_transaction="error")
    other = Plain()
    with app.replace_connector(other) as replaced, pytest.raises(extconn.OutsideTransaction):
        _defer(replaced)
    assert list(layer.patched) == [app.connector]
    extconn.unpatch(app)
    with app.replace_connector(other) as replaced, pytest.raises(ConnectorException, match="Plain"):
        _defer(replaced)


def test_a_patched_connector_that_is_replaced_does_not_patch_the_other(driver: FakeDriver) -> None:
    """Where a connector was patched, and not its app, the next connector of the app is not."""
    app = _app()
    extconn.patch(app.connector)
    with app.replace_connector(Plain()) as replaced, pytest.raises(ConnectorException):
        _defer(replaced)


def test_a_patched_connector_can_be_collected() -> None:
    """The layer keeps no connector alive."""
    connector = weakref.ref(extconn.patch(Plain()))
    gc.collect()
    assert connector() is None


# -- a connection for any query ---------------------------------------------------------------------------------------


def test_queries_take_a_connection(driver: FakeDriver) -> None:
    """`execute_query*` run on the connection that they are given by keyword."""
    extconn.install()
    conn, connector = FakeConnection(), procrastinate.SyncPsycopgConnector()
    assert connector.execute_query("SELECT 1", connection=conn) is None
    assert connector.execute_query_one("SELECT 1", connection=conn) == {"id": 42}
    assert connector.execute_query_all("SELECT %(x)s", connection=conn, x="y") == [{"id": 42}]
    assert [args for _, args in driver.asked] == [{}, {}, {"x": "y"}]


async def test_async_queries_take_a_connection(driver: FakeDriver) -> None:
    """`execute_query*_async` run on the connection that they are given by keyword."""
    extconn.install()
    conn, connector = AsyncFakeConnection(), procrastinate.PsycopgConnector()
    assert await connector.execute_query_async("SELECT 1", connection=conn) is None
    assert await connector.execute_query_one_async("SELECT 1", connection=conn) == {"id": 42}
    assert await connector.execute_query_all_async("SELECT 1", connection=conn) == [{"id": 42}]


def test_a_query_for_one_row_that_has_none_is_no_result(driver: FakeDriver) -> None:
    """`execute_query_one` raises `NoResult` on a connection too."""
    extconn.install()
    driver.rows = []
    with pytest.raises(NoResult):
        Plain().execute_query_one("SELECT 1", connection=FakeConnection())


# -- Procrastinate's own behaviour ------------------------------------------------------------------------------------


@pytest.fixture(params=["off", "on"])
def own(request: pytest.FixtureRequest, dsn: str) -> Iterator[procrastinate.App]:
    """An open app on a connector of Procrastinate's own, with the layer and without."""
    if request.param == "on":
        extconn.install()
    with _app(procrastinate.SyncPsycopgConnector(conninfo=dsn)).open() as app:
        yield app


def test_without_a_connection_jobs_are_committed_at_once(own: procrastinate.App) -> None:
    """A job that is deferred without a connection is there when `defer` returns."""
    job_id = own.configure_task("process_order").defer(text="%s '")
    (job,) = own.job_manager.list_jobs()
    assert (job.id, job.task_kwargs) == (job_id, {"text": "%s '"})


def test_without_a_connection_errors_are_procrastinates(own: procrastinate.App) -> None:
    """A taken lock, a failing query and a missing row are what Procrastinate makes of them."""
    deferrer = own.configure_task("process_order", queueing_lock="lock")
    deferrer.defer()
    with pytest.raises(AlreadyEnqueued):
        deferrer.defer()
    with pytest.raises(ConnectorException) as caught:
        own.connector.execute_query("SELECT broken")
    assert isinstance(caught.value.__cause__, psycopg.errors.UndefinedColumn)
    with pytest.raises(NoResult):
        own.connector.execute_query_one("SELECT 1 WHERE false")


def test_connection_is_an_argument_like_others_where_the_layer_is_off(
    driver: FakeDriver, dsn: str
) -> None:
    """While the layer is on for another app, a query's own argument ``connection`` is what it always was."""
    patched = extconn.patch(_app())
    with _app(procrastinate.SyncPsycopgConnector(conninfo=dsn)).open() as app:
        row = app.connector.execute_query_one("SELECT %(connection)s AS it", connection="argument")
    assert row == {"it": "argument"}
    assert _defer(patched) == 42
