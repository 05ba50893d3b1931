"""The worker of the shop, in a process of its own. SIGINT and SIGTERM stop it once its jobs have ended."""

from __future__ import annotations

import asyncio

import shop


async def main() -> None:
    async with shop.open_pool() as pool:
        await shop.work(pool)


asyncio.run(main())
