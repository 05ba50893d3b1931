from contextlib import asynccontextmanager

import mydriver

from procrastinate_extconn.testing import Held, Kind, PluginContract


@asynccontextmanager
async def connection(dsn):
    async with mydriver.connect(dsn) as conn:
        await conn.begin()
        yield Held(conn, conn.fetch, conn.commit, conn.rollback)


class TestMyDriver(PluginContract):
    kinds = (Kind("mydriver", "mydriver", ("mydriver",), True, connection),)
    exempt = {"state_after_an_error": "mydriver does not show that a transaction failed"}
