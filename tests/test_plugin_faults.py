"""What a plugin returns against the contract is reported as its fault, in a sentence with its name and the hook's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from holding import AsyncFakeConnection, FakeConnection

import procrastinate_extconn as extconn
from procrastinate_extconn import Description, ExternalConnector, hookimpl
from procrastinate_extconn.exceptions import PluginWarning
from procrastinate_extconn.kinds import all_kinds

pytestmark = pytest.mark.usefixtures("fresh")

ROWS = "the plugin 'theirs' returned {} for {}: execute_on_external should return a list of dicts"


class Theirs:
    """A plugin that returns what a test says."""

    def __init__(self, result: Any, description: Any = None) -> None:
        self.result = result
        self.description = description

    @hookimpl
    def execute_on_external(self, conn: object, query: str, args: Mapping[str, Any]) -> Any:
        if isinstance(conn, AsyncFakeConnection):
            return self._awaited()
        return self.result if isinstance(conn, FakeConnection) else None

    async def _awaited(self) -> Any:
        return self.result

    @hookimpl
    def describe_external(self, conn: object) -> Any:
        if not isinstance(conn, (FakeConnection, AsyncFakeConnection)):
            return None
        is_async = isinstance(conn, AsyncFakeConnection)
        return self.description or Description("theirs", "theirs", is_async, "in_transaction")


NO_ROWS = [
    ((1, 2), "tuple", "rows"),
    ({"id": 1}, "dict", "rows"),
    ("rows", "str", "rows"),
    (iter([]), "list_iterator", "rows"),
    ([(1, "a")], "tuple", "a row"),
    ([{"id": 1}, None], "NoneType", "a row"),
]


@pytest.mark.parametrize(("result", "name", "place"), NO_ROWS)
def test_rows_that_are_no_dicts(result: Any, name: str, place: str) -> None:
    """Rows of another type are the plugin's fault, and the caller hears that the statement may have run."""
    extconn.register(Theirs(result), "theirs")
    with pytest.raises(extconn.ExternalConnectionError) as caught:
        ExternalConnector(FakeConnection()).execute_query_all("SELECT 1")
    assert str(caught.value).startswith(ROWS.format(name, place))
    assert str(caught.value).endswith("Roll back: the statement may have run.")


@pytest.mark.parametrize(("result", "name", "place"), [*NO_ROWS, (None, "NoneType", "rows")])
async def test_awaited_rows_that_are_no_dicts(result: Any, name: str, place: str) -> None:
    """So are those that an awaitable gives, and its None: "not mine" can only be said at once."""
    extconn.register(Theirs(result), "theirs")
    connector = ExternalConnector(AsyncFakeConnection())
    with pytest.raises(extconn.ExternalConnectionError) as caught:
        await connector.execute_query_all_async("SELECT 1")
    assert str(caught.value).startswith(ROWS.format(name, place))


async def test_neither_rows_nor_an_awaitable_in_an_async_call() -> None:
    """What cannot be awaited is the plugin's fault, rather than an error of the driver's."""
    description = Description("theirs", "theirs", True, "in_transaction")
    extconn.register(Theirs((1, 2), description), "theirs")
    with pytest.raises(extconn.ExternalConnectionError) as caught:
        await ExternalConnector(FakeConnection()).execute_query_all_async("SELECT 1")
    assert str(caught.value).startswith(ROWS.format("tuple", "rows"))


@pytest.mark.parametrize(
    ("row", "name"),
    [({"id": "42"}, "str"), ({"id": None}, "NoneType"), ({"ID": 42}, "NoneType")],
    ids=["str", "None", "other key"],
)
def test_an_id_that_is_no_int(row: dict[str, Any], name: str, task: Any) -> None:
    """The id of a job that was deferred is an int, or the plugin has spoilt it."""
    extconn.register(Theirs([row]), "theirs")
    with pytest.raises(extconn.ExternalConnectionError) as caught:
        task.configure(connection=FakeConnection()).defer()
    assert str(caught.value).startswith(ROWS.format(name, "a job's id"))


def test_a_description_of_another_type(task: Any) -> None:
    """A description that is no `Description` is the fault of that hook, wherever it is asked."""
    extconn.register(Theirs([{"id": 1}], ("theirs", "theirs", False, "idle")), "theirs")
    calls: list[Callable[[], object]] = [
        lambda: extconn.describe(FakeConnection()),
        task.configure(connection=FakeConnection()).defer,
        task.configure(connection=FakeConnection()).defer,
    ]
    for call in calls:
        with pytest.raises(extconn.ExternalConnectionError) as caught:
            call()
        assert str(caught.value) == (
            "the plugin 'theirs' returned tuple from describe_external: it should return Description or None"
        )


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ([("mine", "theirs", (), False, open)], "TypeError: not all of what it returned are Kind"),
        (None, "TypeError: 'NoneType' object is not iterable"),
        (ImportError("no kinds"), "ImportError: no kinds"),
    ],
    ids=["tuples", "None", "raises"],
)
def test_kinds_of_another_type(kinds: Any, reason: str) -> None:
    """A plugin whose kinds are none is left out with a warning, and the others' are there."""

    class Kinds:
        @hookimpl
        def external_kinds(self) -> Any:
            if isinstance(kinds, Exception):
                raise kinds
            return kinds

    before = all_kinds()
    extconn.register(Kinds(), "theirs")
    with pytest.warns(PluginWarning) as caught:
        assert all_kinds() == before
    (warning,) = caught
    assert str(warning.message).startswith(
        f"the plugin 'theirs' failed in external_kinds: {reason}"
    )
