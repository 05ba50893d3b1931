"""The plugin for asyncpg keeps the contract that every plugin keeps."""

import json
from typing import Any

import asyncpg

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import Kind, PluginContract, variant


async def decode_json(conn: Any) -> None:
    """Set the codecs that asyncpg's documentation shows."""
    for name in ("json", "jsonb"):
        await conn.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


def pool(dsn: str) -> Any:
    """Make a pool, which is its own context manager."""
    return asyncpg.create_pool(dsn, min_size=1, max_size=3)


class TestAsyncpg(PluginContract):
    """A connection and a pool's, with codecs for JSON too."""

    kinds = (*kinds_of("asyncpg"), variant(kinds_of("asyncpg")[0], "codecs", decode_json))
    pools = (Kind("asyncpg-pool-itself", "asyncpg", ("asyncpg",), True, pool),)
    exempt = {
        "state_after_an_error": "asyncpg does not show that a transaction has failed",
    }
