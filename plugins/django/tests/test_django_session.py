"""What somebody sets or sends as SQL on a connection of Django's, which Django does not notice."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pytest
from django.db import transaction
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.testing.contract.database import Database


def test_session_with_another_time_zone(connection: Any, ship: Any) -> None:
    """Instants are right where the session's time zone is not Django's, in the hour that comes twice, too."""
    instants = [datetime(2031, 10, 26, hour, 15, tzinfo=timezone.utc) for hour in (0, 1)]
    with transaction.atomic():
        connection.cursor().execute("SET TimeZone = 'Europe/Berlin'")
        for at in instants:
            ship.configure(connection=connection, schedule_at=at).defer()
        jobs = list(JobManager(ExternalConnector(connection)).list_jobs())
    found = [job.scheduled_at and job.scheduled_at.astimezone(timezone.utc) for job in jobs]
    assert found == instants


def test_commit_as_sql(connection: Any, database: Database, ship: Any) -> None:
    """After a COMMIT that was sent as SQL, no job is committed by itself without a word."""
    with transaction.atomic():
        connection.cursor().execute("SELECT 1")
        connection.cursor().execute("COMMIT")
        external = extconn.external(connection, outside_transaction="error")
        with suppress(extconn.OutsideTransaction):
            ship.configure(connection=external).defer()
        transaction.set_rollback(True)
    assert not database.jobs()


def test_client_encoding_as_sql(connection: Any, driver: str, ship: Any) -> None:
    """A driver that does not notice another client_encoding sends no text in it."""
    with transaction.atomic():
        connection.cursor().execute("SET client_encoding = 'LATIN1'")
        locked = ship.configure(connection=connection, lock="é")
        if driver == "psycopg2":
            with pytest.raises(extconn.ExternalConnectionError, match="still writes UTF8"):
                locked.defer()
            return
        locked.defer()
        [job] = JobManager(ExternalConnector(connection)).list_jobs()
        assert job.lock == "é"
