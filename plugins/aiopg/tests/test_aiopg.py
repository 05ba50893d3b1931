"""The plugin for aiopg keeps the contract that every plugin keeps."""

from typing import Any

import aiopg

from procrastinate_extconn.testing import Kind, PluginContract


def pool(dsn: str) -> Any:
    """Make a pool, which is its own context manager."""
    return aiopg.create_pool(dsn, minsize=1, maxsize=3)


class TestAiopg(PluginContract):
    """What is taken from a pool is a connection like any other."""

    plugin = "aiopg"
    pools = (Kind("aiopg-pool", "aiopg", ("aiopg",), True, pool),)
