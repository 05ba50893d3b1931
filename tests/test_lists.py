"""A list travels as the text of an array, and no text is cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from holding import External, FakeConnection, FakeDriver
from procrastinate import sql
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.drivers import execute_on_held
from procrastinate_extconn.wire import encode

ODD = ["", " ", "NULL", "null", '"', "\\", "{}", "a,b", "é\n\t", "%s %(x)s $1 :a ?", "'); --"]


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module."""
    return new_database()


def ask(external: External, query: str, **arguments: Any) -> Any:
    """The first column of the first row."""
    connector = ExternalConnector(external.conn)
    [row] = external.call(connector, "execute_query_all", query, **arguments)
    return row["found"]


def test_a_list_of_numbers(external: External) -> None:
    """A person's own query has a list of numbers, on every kind of connection."""
    query = "SELECT (sum(n))::int AS found FROM unnest(%(numbers)s::bigint[]) AS n"
    assert ask(external, query, numbers=[1, 2, 3]) == 6
    assert ask(external, query, numbers=(1, None, 2**40 - 2**40)) == 1
    assert ask(external, query, numbers=[]) is None


def test_a_list_of_texts(external: External) -> None:
    """So it has a list of texts, and each comes back as it was."""
    query = "SELECT (%(texts)s::text[])[%(n)s::int] AS found"
    for number, text in enumerate(ODD, 1):
        assert ask(external, query, texts=ODD, n=number) == text
    query = "SELECT (%(texts)s::text[])[1] IS NULL AS found"
    assert ask(external, query, texts=[None]) is True
    assert ask(external, query, texts=["NULL"]) is False


@pytest.mark.parametrize(
    "query",
    ["SELECT %(ids)s AS found", "SELECT 1 AS found WHERE 1 = ANY(%(ids)s)"],
)
def test_a_list_without_a_cast_is_refused(external: External, query: str) -> None:
    """Without a cast a list is refused before it is sent, with the cast that is lacking, and all goes on."""
    with pytest.raises(extconn.ExternalConnectionError) as caught:
        ask(external, query, ids=[1, 2])
    assert str(caught.value) == (
        "the parameter 'ids' is a list, and the query does not say of what: write %(ids)s::bigint[], or text[], or "
        "the type that it is"
    )
    assert ask(external, "SELECT 1 AS found") == 1


@pytest.mark.parametrize("inner", [[1], (1,), {"a": 1}], ids=["list", "tuple", "dict"])
def test_a_list_in_a_list_is_refused(external: External, inner: object) -> None:
    """A list in a list, and a dict in a list, are refused before anything is sent."""
    with pytest.raises(extconn.ExternalConnectionError, match="in a list, is no parameter"):
        ask(external, "SELECT cardinality(%(n)s::int[]) AS found", n=[inner])
    assert ask(external, "SELECT 1 AS found") == 1


def test_old_jobs_are_deleted(external: External, task: Any) -> None:
    """The query of `delete_old_jobs` deletes jobs of the statuses that it lists, and no others, in the transaction."""
    connector = ExternalConnector(external.conn)
    manager = JobManager(connector)
    kept, cancelled, failed = [external.defer(task) for _ in range(3)]
    external.call(manager, "cancel_job_by_id", cancelled)
    external.execute(f"UPDATE procrastinate_jobs SET status = 'failed' WHERE id = {failed:d}")
    external.execute("UPDATE procrastinate_events SET at = at - INTERVAL '3 hours'")
    # The manager's method is async alone.
    external.call(
        connector,
        "execute_query",
        sql.queries["delete_old_jobs"],
        nb_hours=2,
        queue=None,
        statuses=["succeeded", "cancelled"],
    )
    found = [row[0] for row in external.execute("SELECT id FROM procrastinate_jobs")]
    assert {kept, failed} <= {*found}
    assert cancelled not in found
    external.rollback()


@pytest.mark.parametrize(("number", "text"), [(720, "720"), (2.5, "2.5")])
def test_a_number_in_a_text_is_whole(external: External, number: float, text: str) -> None:
    """A number that becomes part of a text, such as a count of hours, keeps its digits with any setting."""
    external.execute("SET extra_float_digits = -15")
    assert ask(external, "SELECT %(n)s || 'HOUR' AS found", n=number) == f"{text}HOUR"
    external.rollback()


def test_a_job_is_fetched_from_queues_with_odd_names(external: External, task: Any) -> None:
    """What a worker sends, a list of queues, reaches the server as it is on every kind of connection."""
    query = sql.queries["fetch_job"]
    queues = ODD[1:]
    [[worker]] = external.execute("INSERT INTO procrastinate_workers DEFAULT VALUES RETURNING id")
    for queue in (*queues, "another"):
        external.defer(task.configure(queue=queue))
    # A connection refuses the worker's queries, so they go to the plugin as it would get them.
    sent, args = encode(query, {"queues": queues, "worker_id": worker})
    found = []
    for _ in range(len(queues) + 1):
        [row] = external.run(lambda: execute_on_held(external.conn, sent, args))
        found.append(row["queue_name"])
    assert found == [*queues, None]
    external.rollback()


def test_a_plugin_is_given_no_list(driver: FakeDriver) -> None:
    """What a plugin is asked to bind is the text of an array, or None."""
    connector = ExternalConnector(FakeConnection())
    connector.execute_query(
        "SELECT %(texts)s::text[], %(none)s::text[]", texts=['a "b"'], none=None
    )
    [(query, args)] = driver.asked
    assert args == {"texts": '{"a \\"b\\""}', "none": None}
    assert "::" not in query


def test_a_list_of_instants(external: External) -> None:
    """Anything whose text the server reads may be in a list."""
    seconds = random.Random(7).randrange(2**31)
    instant = datetime.fromtimestamp(seconds, timezone.utc)
    query = "SELECT extract(epoch FROM (%(at)s::timestamptz[])[1])::bigint AS found"
    assert ask(external, query, at=[instant]) == seconds


@pytest.mark.parametrize("given", ["before\0after", ["before\0after"]], ids=["text", "list"])
def test_a_nul_is_refused_before_it_is_sent(external: External, given: object) -> None:
    """A text with a NUL is refused on every kind, rather than cut by some drivers, and the transaction goes on."""
    with pytest.raises(extconn.ExternalConnectionError) as caught:
        ask(external, "SELECT cardinality(%(given)s::text[]) AS found", given=given)
    assert str(caught.value) == (
        "the parameter 'given' has a NUL character, which PostgreSQL cannot store: remove it"
    )
    assert ask(external, "SELECT 1 AS found") == 1
