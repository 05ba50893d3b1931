"""The server takes no writes: a standby that follows another, or a database whose transactions are read-only."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import psycopg
import pytest
from faults.ledger import Ledger
from faults.servers import new_database
from goes_wrong_page import as_shown, shown
from procrastinate.exceptions import ConnectorException
from psycopg.conninfo import conninfo_to_dict

from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run
from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]


@pytest.fixture(scope="module")
def standby(server: TemporaryServer) -> Iterator[TemporaryServer]:
    """A standby that follows the server."""
    with TemporaryServer(standby_of=server) as standby:
        yield standby


@pytest.fixture(scope="module")
def followed(server: TemporaryServer, standby: TemporaryServer) -> Iterator[tuple[str, str]]:
    """A clean database on the primary, and the same on its standby."""
    with new_database(server) as dsn, psycopg.connect(server.dsn(), autocommit=True) as primary:
        [here] = primary.execute("SELECT pg_current_wal_lsn()").fetchone() or [None]
        with psycopg.connect(standby.dsn(), autocommit=True) as there:
            behind = "SELECT pg_last_wal_replay_lsn() < %s"
            while there.execute(behind, [here]).fetchone() != (False,):
                pass
        yield dsn, standby.dsn(str(conninfo_to_dict(dsn)["dbname"]))


def test_standby(
    kind: Kind, followed: tuple[str, str], rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """A job that is deferred on a standby is refused, and a rollback leaves the connection as it was."""
    primary, standby = followed
    ledger = Ledger(kind, primary, rng)
    for _ in range(sized(2, 20)):
        run(kind, standby, lambda held: refused(ledger, held))
    assert audit("standby", ledger).committed == 0


def test_read_only(
    kind: Kind, own_dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Under `default_transaction_read_only` a job is refused, unless the transaction says that it writes."""
    database = conninfo_to_dict(own_dsn)["dbname"]
    with psycopg.connect(own_dsn) as conn:
        conn.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    ledger = Ledger(kind, own_dsn, rng)

    async def writes(held: Held) -> None:
        await done(held.execute("SET TRANSACTION READ WRITE"))
        await ledger.transact(held)

    for _ in range(sized(2, 20)):
        run(kind, own_dsn, lambda held: refused(ledger, held))
        run(kind, own_dsn, writes)
    found = audit("read-only", ledger)
    assert found.hit * 2 == found.transactions


async def refused(ledger: Ledger, held: Held) -> None:
    """Defer, and hear why that is not to be."""
    with pytest.raises(ConnectorException, match=r"25006.*(standby|read-only)"):
        await ledger.defer(held.conn, ledger.begin())
    with contextlib.suppress(Exception):  # Some connections roll back by themselves.
        await done(held.rollback())


def test_standby_is_on_the_page(followed: tuple[str, str], rng: random.Random) -> None:
    """Where the driver knows that the server is a standby, the message says so, as the documentation has it."""
    ledger = Ledger(all_kinds()[0], followed[1], rng)

    async def refused(held: Held) -> None:
        with pytest.raises(ConnectorException) as caught:
            await ledger.defer(held.conn, ledger.begin())
        assert as_shown(caught.value) in shown()

    run(ledger.kind, ledger.dsn, refused)
