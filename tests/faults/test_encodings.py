"""The database's encoding is not UTF-8: what it cannot store is an error, never another value."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable

import pytest
from faults.fidelity import PLACES, Fidelity, placed
from faults.ledger import Ledger
from faults.servers import new_database

from procrastinate_extconn.kinds import Kind, run
from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

TEXTS = ["plain", "é ÿ", "€", "\x80\x9f", "日本語", "🙂", "e\u0301"]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding(
    kind: Kind,
    encoding: str,
    server: TemporaryServer,
    rng: random.Random,
    audit: Callable,
    sized: Callable,
) -> None:
    """A text comes back as it was, or is refused as one that the encoding lacks."""
    if encoding == "SQL_ASCII" and {"sqlalchemy", "psycopg"} <= {*kind.requires}:
        pytest.skip("SQLAlchemy on psycopg reads no text from such a database")
    chosen = list(itertools.product(PLACES, TEXTS))
    rng.shuffle(chosen)
    with new_database(server, f"TEMPLATE template0 LOCALE 'C' ENCODING '{encoding}'") as dsn:
        ledger = Ledger(kind, dsn, rng)
        fidelity = Fidelity(ledger, "encod")
        for place, text in chosen[: sized(3, None)]:
            arguments, options = placed(place, text)
            run(
                kind,
                dsn,
                functools.partial(fidelity.transact, arguments=arguments, options=options),
            )
        audit(encoding, ledger)
        assert fidelity.stored() == fidelity.sent
