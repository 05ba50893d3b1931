"""The plugin for aiopg keeps the contract that every plugin keeps."""

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract


class TestAiopg(PluginContract):
    """What is taken from a pool is a connection like any other."""

    kinds = kinds_of("aiopg")
