"""The plugin for Django keeps the contract that every plugin keeps."""

from procrastinate_extconn.testing import PluginContract


class TestDjango(PluginContract):
    """On psycopg; the specifics have psycopg2."""

    plugin = "django"
