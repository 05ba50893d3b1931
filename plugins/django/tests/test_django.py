"""The plugin for Django keeps the contract that every plugin keeps."""

from procrastinate_extconn.testing import PluginContract

ROLLBACK_ALONE = "after an error, Django refuses everything but the rollback of the atomic block"


class TestDjango(PluginContract):
    """On psycopg; the specifics have psycopg2."""

    plugin = "django"
    exempt = {
        "next_call_after_an_error": ROLLBACK_ALONE,
        "session_stays_after_an_error": ROLLBACK_ALONE,
    }
