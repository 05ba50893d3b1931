"""The plugin for pg8000 keeps the contract that every plugin keeps."""

from procrastinate_extconn.testing import PluginContract


class TestPg8000(PluginContract):
    """Both of its interfaces."""

    plugin = "pg8000"
