"""A server that speaks another language is understood all the same."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from faults.chance import LONG
from faults.ledger import Ledger
from faults.servers import new_database
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException

from procrastinate_extconn.kinds import Held, Kind, done, run
from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

LANGUAGES = ["de", "es", "fr", "it", "ja", "ko", "ru", "sv", "uk", "zh_CN"] if LONG else ["de"]
LOCKS = ["é)", '"x"', "it's «this»", "„so“ »oder« ”so”"]


@contextlib.contextmanager
def speaking(language: str) -> Iterator[TemporaryServer]:
    """A server of the system's own PostgreSQL, as the one in the wheel speaks English alone.

    Its locale is the one that is always there, and gettext's own variable has the last word on the language.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not installed:
        pytest.skip("no PostgreSQL is installed whose messages are translated")
    programs = installed[-1]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        bin_dir = Path(folder)
        bin_dir.chmod(0o755)
        (bin_dir / "initdb").symlink_to(programs / "initdb")
        postgres = bin_dir / "postgres"
        postgres.write_text(f'#!/bin/sh\nLANGUAGE={language} exec {programs}/postgres "$@"\n')
        postgres.chmod(0o755)
        options = {"lc_messages": "C.UTF-8"}
        with TemporaryServer(bin_dir=bin_dir, options=options) as server:
            with psycopg.connect(server.dsn()) as conn, pytest.raises(psycopg.Error) as caught:
                conn.execute("SELECT 1 / 0")
            if caught.value.diag.message_primary == "division by zero":
                pytest.skip(f"the installed PostgreSQL does not speak {language!r}")
            yield server


@pytest.fixture(scope="module", params=LANGUAGES)
def foreign_server(request: pytest.FixtureRequest) -> Iterator[TemporaryServer]:
    """A server that speaks the language."""
    with speaking(request.param) as server:
        yield server


@pytest.fixture
def foreign_dsn(foreign_server: TemporaryServer) -> Iterator[str]:
    """Address a clean database on it."""
    with new_database(foreign_server) as dsn:
        yield dsn


def test_language(
    kind: Kind, foreign_dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """The error names a taken lock, with any quotation marks in the server's message."""
    ledger = Ledger(kind, foreign_dsn, rng)

    async def enqueue(held: Held, lock: str) -> None:
        order = ledger.begin()
        await ledger.insert(held, order)
        await ledger.defer(held.conn, order, queueing_lock=lock)
        await ledger.commit(held, order)

    async def refused(held: Held, lock: str) -> None:
        with pytest.raises(AlreadyEnqueued) as caught:
            await enqueue(held, lock)
        violation = caught.value.__cause__
        assert violation.queueing_lock == lock
        assert lock not in str(violation)
        assert "Your transaction has failed" in str(violation) or kind.id == "psqlpy"
        await done(held.rollback())

    locks = rng.sample(LOCKS, sized(2, len(LOCKS)))
    for lock in locks:
        run(kind, foreign_dsn, functools.partial(enqueue, lock=lock))
        run(kind, foreign_dsn, functools.partial(refused, lock=lock))
    found = audit("language", ledger)
    assert found.hit == found.committed == len(locks)


def test_missing_schema(kind: Kind, foreign_server: TemporaryServer, rng: random.Random) -> None:
    """A database without the schema is told of with what to check."""
    if kind.plugin == "psqlpy":
        pytest.skip("psqlpy tells no SQLSTATE, and we read the message in English alone")
    ledger = Ledger(kind, foreign_server.dsn(), rng)

    async def refused(held: Held) -> None:
        with pytest.raises(ConnectorException, match=r"42P01.*search_path"):
            await ledger.defer(held.conn, ledger.begin())
        await done(held.rollback())

    run(kind, ledger.dsn, refused)
