"""The plugin for Tortoise ORM keeps the contract that every plugin keeps."""

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract

ON_ASYNCPG, ON_PSYCOPG = kinds_of("tortoise")
OVER = "a transaction is over when it has ended, although the connection below it goes on"
ONE_SET = "Tortoise.init() replaces the connections that an earlier one has made"


class TestOnAsyncpg(PluginContract):
    """On asyncpg, which does not show that a transaction has failed."""

    kinds = (ON_ASYNCPG,)
    exempt = {
        "state_after_an_error": "asyncpg does not show that a transaction has failed",
        "two_connections": ONE_SET,
        "next_transaction": OVER,
    }


class TestOnPsycopg(PluginContract):
    """On psycopg."""

    kinds = (ON_PSYCOPG,)
    exempt = {"two_connections": ONE_SET, "next_transaction": OVER}
