"""The plugin for asyncpg keeps the contract that every plugin keeps."""

import json
from typing import Any

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract, variant


async def decode_json(conn: Any) -> None:
    """Set the codecs that asyncpg's documentation shows."""
    for name in ("json", "jsonb"):
        await conn.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


class TestAsyncpg(PluginContract):
    """A connection and a pool's, with codecs for JSON too."""

    kinds = (*kinds_of("asyncpg"), variant(kinds_of("asyncpg")[0], "codecs", decode_json))
    cannot_tell = ("failed",)
