"""The page "Privileges": a role with those that it names, and no other, can make the call."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector

OF_ITS_OWN = (
    "INSERT, SELECT (id) ON procrastinate_jobs",
    "INSERT ON procrastinate_events",
    "USAGE ON SEQUENCE procrastinate_jobs_id_seq",
    "USAGE ON SEQUENCE procrastinate_events_id_seq",
)
EXISTING = "SELECT (id, queueing_lock, status), UPDATE (id) ON procrastinate_jobs"
SECURE = """
ALTER FUNCTION procrastinate_defer_jobs_v1 SECURITY DEFINER;
REVOKE EXECUTE ON FUNCTION procrastinate_defer_jobs_v1 FROM PUBLIC
"""
EXECUTE = "EXECUTE ON FUNCTION procrastinate_defer_jobs_v1"


@pytest.fixture
def as_role(dsn: str) -> Iterator[Callable[..., Any]]:
    """Make a connection of a new role with these privileges."""
    role = f"role_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role}")
        conn = psycopg.connect(dsn)

        def connect(*privileges: str, before: str = "") -> Any:
            owner.execute(before)
            for privilege in privileges:
                owner.execute(f"GRANT {privilege} TO {role}")
            conn.execute(f"SET ROLE {role}")
            return conn

        yield connect
        conn.close()
        owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("savepoint", [False, True])
def test_a_role_that_may_only_call_the_function(as_role: Any, task: Any, savepoint: bool) -> None:
    """Where the function runs with its owner's privileges, EXECUTE is enough to defer."""
    conn = as_role(EXECUTE, before=SECURE)
    options = extconn.external(conn, savepoint=savepoint)
    assert task.configure(connection=options, queueing_lock="one").defer()


@pytest.mark.parametrize("missing", [None, *OF_ITS_OWN])
def test_deferring(as_role: Any, task: Any, missing: str | None) -> None:
    """By default the function runs with the caller's privileges, and each that the page names is needed."""
    conn = as_role(*(privilege for privilege in OF_ITS_OWN if privilege != missing))
    if missing is None:
        assert task.configure(connection=conn).defer()
    else:
        with pytest.raises(ConnectorException, match="42501"):
            task.configure(connection=conn).defer()


@pytest.mark.parametrize(
    "granted", [EXISTING, EXISTING.partition(", UPDATE")[0] + " ON procrastinate_jobs"]
)
def test_existing(as_role: Any, task: Any, granted: str) -> None:
    """`on_conflict="existing"` reads three columns, and locks the row, for which it needs UPDATE on one."""
    conn = extconn.external(as_role(EXECUTE, granted, before=SECURE), on_conflict="existing")
    deferrer = task.configure(connection=conn, queueing_lock="one")
    if granted == EXISTING:
        assert deferrer.defer() == deferrer.defer()
    else:
        with pytest.raises(ConnectorException, match="42501"):
            deferrer.defer()


def test_reading_and_cancelling(as_role: Any, dsn: str, task: Any) -> None:
    """Listing needs SELECT on the jobs; cancelling needs UPDATE as well, and what a job's events need."""
    with psycopg.connect(dsn) as conn:
        job_id = task.configure(connection=conn).defer()
    conn = as_role("SELECT, UPDATE ON procrastinate_jobs", *OF_ITS_OWN[1:])
    manager = JobManager(ExternalConnector(conn))
    assert [job.id for job in manager.list_jobs()] == [job_id]
    assert manager.cancel_job_by_id(job_id)
