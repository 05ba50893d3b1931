"""How the error of a driver is read: by its plugin, from its attributes, and from the server's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from holding import FakeConnection
from installing import Site
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException, UniqueViolation
from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT

import procrastinate_extconn as extconn
from procrastinate_extconn import Diagnostic, ExternalConnector, hookimpl
from procrastinate_extconn.diagnosis import read
from procrastinate_extconn.exceptions import PluginWarning

pytestmark = pytest.mark.usefixtures("fresh")

INDEX = QUEUEING_LOCK_CONSTRAINT
TAKEN = f'duplicate key value violates unique constraint "{INDEX}"'
THEIR_DRIVER = """
    from procrastinate_extconn import hookimpl
    import psycopg

    class Error(Exception):
        sqlstate = None

    class Connection:
        def __init__(self, raw):
            self.raw = raw

    @hookimpl
    def execute_on_external(conn, query, args):
        if not isinstance(conn, Connection):
            return None
        try:
            cursor = conn.raw.execute(query, args)
        except psycopg.Error as exc:
            error = Error(str(exc))
            error.sqlstate = exc.sqlstate
            raise error from None
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row)) for row in cursor]
"""


class Fails:
    """A plugin of a driver that raises what it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @hookimpl
    def execute_on_external(self, conn: object, query: str, args: Mapping[str, Any]) -> Any:
        if isinstance(conn, FakeConnection):
            raise self.error


class Reads(Fails):
    """The same, with a hook that reads its errors and keeps what it was asked about."""

    def __init__(self, error: Exception, said: Any = None, cls: type = Exception) -> None:
        super().__init__(error)
        self.said = said
        self.cls = cls
        self.asked: list[BaseException] = []

    @hookimpl
    def read_external_error(self, error: BaseException) -> Any:
        self.asked.append(error)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said if isinstance(error, self.cls) else None


class DriverError(Exception):
    """An error of a driver that knows nothing but its text, unless a test adds something."""


class WrapperError(Exception):
    """An error that wraps the driver's, as SQLAlchemy and ADBC wrap theirs."""

    def __init__(self, orig: Exception) -> None:
        super().__init__("[parameters: hunter2]")
        self.orig = orig


def failure(plugin: Fails) -> ConnectorException:
    """What a query on that plugin's connection raises."""
    extconn.register(plugin, "theirs")
    with pytest.raises(ConnectorException) as caught:
        ExternalConnector(FakeConnection()).execute_query_all("SELECT 1")
    return caught.value


def with_attributes(error: Exception, **attributes: object) -> Exception:
    """*error*, with attributes as drivers give theirs."""
    vars(error).update(attributes)
    return error


# -- a driver that nobody here knows ----------------------------------------------------------------------------------


def test_a_driver_without_constraint_names_has_already_enqueued(
    site: Site, dsn: str, request: pytest.FixtureRequest
) -> None:
    """A stranger's driver that tells the SQLSTATE and no constraint gives `AlreadyEnqueued`, with the lock."""
    site.install("their-driver", THEIR_DRIVER, "theirs")
    import their_driver

    task = request.getfixturevalue("task")
    with psycopg.connect(dsn) as raw:
        conn = their_driver.Connection(raw)
        lock = "one at a time"
        task.configure(connection=conn, queueing_lock=lock).defer()
        with pytest.raises(AlreadyEnqueued) as caught:
            task.configure(connection=conn, queueing_lock=lock).defer()
    assert isinstance(caught.value.__cause__, UniqueViolation)
    assert caught.value.__cause__.queueing_lock == lock
    assert isinstance(caught.value.__cause__.__cause__, their_driver.Error)


# -- the hook ---------------------------------------------------------------------------------------------------------


def test_the_hook_is_asked_about_each_error_in_the_chain() -> None:
    """The wrapper's error and the driver's are both shown to the plugin, which knows one by its class."""
    inner = DriverError("no text of a server")
    said = Diagnostic("22012", "division by zero", None, None)
    plugin = Reads(WrapperError(inner), said, DriverError)
    error = failure(plugin)
    assert "division by zero (SQLSTATE 22012)" in str(error)
    assert error.__cause__ is inner
    assert "hunter2" not in str(error)
    assert plugin.asked[0] is inner


def test_the_hook_is_asked_on_outwards_until_somebody_knows() -> None:
    """A plugin that knows the wrapper alone is asked about the driver's error first, and then about the wrapper."""
    outer = WrapperError(DriverError("nothing"))
    said = Diagnostic("22012", "division by zero", None, None)
    plugin = Reads(outer, said, WrapperError)
    extconn.register(plugin, "theirs")
    assert read(outer) == (outer, said)
    assert plugin.asked == [outer.orig, outer]


def test_the_hook_goes_before_the_attributes() -> None:
    """What the plugin reads is believed rather than an attribute that happens to have a usual name."""
    error = with_attributes(DriverError("x"), sqlstate="XX000", message="something else")
    plugin = Reads(error, Diagnostic("23505", TAKEN, None, INDEX))
    assert isinstance(failure(plugin), UniqueViolation)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (RuntimeError("oops"), "RuntimeError: oops"),
        (
            ("23505", None, None, None),
            "the plugin 'theirs' returned tuple from read_external_error",
        ),
    ],
    ids=["raises", "wrong type"],
)
def test_a_hook_that_fails_hides_no_error(said: Any, reason: str) -> None:
    """A fault of the hook is a warning that names the plugin and the fault, and the driver's error comes out."""
    inner = with_attributes(DriverError("x"), sqlstate="22012", message="division by zero")
    with pytest.warns(PluginWarning) as caught:
        error = failure(Reads(inner, said))
    assert error.__cause__ is inner
    assert "division by zero (SQLSTATE 22012)" in str(error)
    (warning,) = caught
    assert "read_external_error" in str(warning.message)
    assert "theirs" in str(warning.message)
    assert reason in str(warning.message)


# -- attributes -------------------------------------------------------------------------------------------------------


class Diag:
    """What psycopg and its likes keep in ``diag``."""

    message_primary = TAKEN
    message_detail = "Key (queueing_lock)=(x) already exists."
    constraint_name = INDEX


WHOLE = Diagnostic("23505", TAKEN, Diag.message_detail, INDEX)


@pytest.mark.parametrize(
    ("attributes", "args"),
    [
        ({"sqlstate": "23505", "diag": Diag()}, ("x",)),
        ({"pgcode": "23505", "diag": Diag()}, ("x",)),
        (
            {
                "sqlstate": "23505",
                "message": TAKEN,
                "detail": Diag.message_detail,
                "constraint_name": INDEX,
            },
            ("x",),
        ),
        ({}, ({"C": "23505", "M": TAKEN, "D": Diag.message_detail, "n": INDEX},)),
    ],
    ids=["sqlstate-diag", "pgcode-diag", "attributes", "fields"],
)
def test_usual_attributes_are_read(attributes: dict[str, Any], args: tuple[Any, ...]) -> None:
    """The attributes that the documentation lists give every fact, without a hook."""
    error = with_attributes(DriverError(*args), **attributes)
    assert read(error) == (error, WHOLE)


# -- the server's text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sqlstate", [None, "23505"], ids=["no sqlstate", "sqlstate"])
@pytest.mark.parametrize(
    "text",
    [
        f"ERROR:  {TAKEN}\nDETAIL:  Key (queueing_lock)=(x) already exists.",
        f"FEHLER:  doppelter Schlüsselwert verletzt Unique-Constraint „{INDEX}“\nDETAIL:  »(lock)=(x)«",
        f"ERREUR:  la valeur d'une clé dupliquée rompt la contrainte unique « {INDEX} »",
        f"ОШИБКА:  повторяющееся значение ключа нарушает ограничение уникальности «{INDEX}»",
        f'错误:  重复键违反唯一约束"{INDEX}"',
    ],
    ids=["English", "German", "French", "Russian", "Chinese"],
)
def test_the_lock_is_found_in_the_servers_text(text: str, sqlstate: str | None) -> None:
    """Where no attribute names the constraint, the text does, in every language of the server."""
    error = failure(Fails(with_attributes(DriverError(text), sqlstate=sqlstate)))
    assert isinstance(error, UniqueViolation)
    assert error.constraint_name == INDEX


@pytest.mark.parametrize("sqlstate", [None, "23505", "23502"])
def test_a_value_is_not_taken_for_a_constraint(sqlstate: str | None) -> None:
    """The index's name in a DETAIL, in any language, is a value of somebody's and no constraint."""
    text = f'FEHLER:  etwas anderes\nDETAIL:  Schlüssel »(lock)=("{INDEX}")« existiert bereits.'
    _, said = read(with_attributes(DriverError(text), sqlstate=sqlstate))
    assert said.constraint is None


def test_facts_are_completed_one_by_one() -> None:
    """The text of the server gives the facts that the attributes lack, and replaces none that they give."""
    text = "db: ERROR:  division by zero\nDETAIL:  none to speak of (SQLSTATE 22012)"
    _, said = read(DriverError(text))
    assert said[:3] == ("22012", "division by zero", "none to speak of (SQLSTATE 22012)")
    _, said = read(with_attributes(DriverError(text), sqlstate="22000", message="mine"))
    assert said[:2] == ("22000", "mine")


def test_an_error_without_any_fact_is_still_told() -> None:
    """An error that did not come from the server is named by its class, and is the cause."""
    inner = DriverError("the socket is asleep")
    error = failure(Fails(inner))
    assert "raised DriverError (see the cause)" in str(error)
    assert error.__cause__ is inner
