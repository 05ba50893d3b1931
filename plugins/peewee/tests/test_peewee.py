"""The plugin for Peewee keeps the contract that every plugin keeps."""

from procrastinate_extconn.testing import PluginContract


class TestPeewee(PluginContract):
    """On psycopg and psycopg2."""

    plugin = "peewee"
