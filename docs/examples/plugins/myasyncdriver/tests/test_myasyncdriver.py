import myasyncdriver

from procrastinate_extconn.testing import Kind, PluginContract


class TestMyAsyncDriver(PluginContract):
    plugin = "myasyncdriver"
    pools = (Kind("pool", "myasyncdriver", ("myasyncdriver",), True, myasyncdriver.Pool),)
