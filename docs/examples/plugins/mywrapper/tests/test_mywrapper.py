from procrastinate_extconn.testing import PluginContract


class TestMyWrapper(PluginContract):
    plugin = "mywrapper"
