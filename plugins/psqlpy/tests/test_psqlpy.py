"""The plugin for psqlpy keeps the contract that every plugin keeps."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psqlpy

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import Kind, PluginContract

CONNECTION, TRANSACTION = kinds_of("psqlpy")
NO_STATE = "a connection shows neither a BEGIN that was sent as SQL nor what became of it"
NO_COMMIT = "a transaction does not show that a COMMIT was sent as SQL"
UTF_8 = "psqlpy does not notice a client_encoding that was set with SQL, and does not show it"
NO_SQLSTATE = "psqlpy gives the text of an error alone"
DEAF = "a connection of psqlpy's pool hears no notification: its listener opens one of its own, beyond the pool's size"
NO_LISTENER = {
    "pool_listens": DEAF,
    "listener_runs_statements": DEAF,
    "listener_is_tidied_up": DEAF,
    "listener_ends_with_its_connection": DEAF,
}


@asynccontextmanager
async def pool(dsn: str) -> AsyncGenerator[Any]:
    """Open a pool."""
    pool = psqlpy.ConnectionPool(dsn, max_db_pool_size=3)
    yield pool
    pool.close()


class TestConnection(PluginContract):
    """A connection shows no state but that it is closed."""

    kinds = (CONNECTION,)
    pools = (Kind("psqlpy-pool", "psqlpy", ("psqlpy",), True, pool),)
    exempt = {
        "state_at_first": NO_STATE,
        "state_in_a_transaction": NO_STATE,
        "state_after_an_error": NO_STATE,
        "state_after_commit": NO_STATE,
        "state_after_rollback": NO_STATE,
        "autocommit": NO_STATE,
        "sqlstate": NO_SQLSTATE,
        "other_client_encoding": UTF_8,
        **NO_LISTENER,
    }


class TestTransaction(PluginContract):
    """A transaction shows all but its failure."""

    kinds = (TRANSACTION,)
    pools = TestConnection.pools
    exempt = {
        "state_after_an_error": "a transaction does not show that it has failed",
        "state_after_a_raw_commit": NO_COMMIT,
        "sqlstate": NO_SQLSTATE,
        "other_client_encoding": UTF_8,
        **NO_LISTENER,
    }
