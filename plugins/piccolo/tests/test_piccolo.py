"""The plugin for Piccolo keeps the contract that every plugin keeps."""

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract


class TestPiccolo(PluginContract):
    """On asyncpg, which does not show that a transaction has failed."""

    kinds = kinds_of("piccolo")
    cannot_tell = ("failed",)
