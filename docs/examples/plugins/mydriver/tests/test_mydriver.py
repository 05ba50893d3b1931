from procrastinate_extconn.testing import PluginContract


class TestMyDriver(PluginContract):
    plugin = "mydriver"
    exempt = {
        "state_after_an_error": "mydriver does not show that a transaction has failed",
    }
