"""The plugin for Piccolo keeps the contract that every plugin keeps."""

from procrastinate_extconn.testing import PluginContract


class TestPiccolo(PluginContract):
    """On asyncpg, which does not show that a transaction has failed."""

    plugin = "piccolo"
    exempt = {"state_after_an_error": "asyncpg does not show that a transaction has failed"}
