"""The plugin for pg8000 keeps the contract that every plugin keeps."""

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract


class TestPg8000(PluginContract):
    """Both of its interfaces."""

    kinds = kinds_of("pg8000")
