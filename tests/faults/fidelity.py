"""A job comes back as it was, or is refused with a reason that tells what has become of the transaction."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
from faults.ledger import Ledger
from procrastinate.exceptions import ConnectorException

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, done

Job = tuple[dict[str, Any], str, str | None, str | None]
"""Arguments, queue, lock, queueing lock."""

# As bytes, since psycopg would have a say in what they mean.
_STORED = """
SELECT convert_to(args::text, 'UTF8'), convert_to(queue_name, 'UTF8'),
    convert_to(lock, 'UTF8'), convert_to(queueing_lock, 'UTF8')
FROM procrastinate_jobs
"""

PLACES = ["args", "key", "queue", "lock", "queueing_lock"]


def placed(place: str, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments and options of a job that has *text* in one of `PLACES`."""
    if place == "args":
        return {"text": text}, {}
    if place == "key":
        return {text: "text"}, {}
    return {}, {place: text}


class Fidelity:
    """Defers jobs that may be refused.

    :param reason: a regular expression for what a refusal says.
    """

    def __init__(self, ledger: Ledger, reason: str) -> None:
        self._ledger = ledger
        self._reason = reason
        self.sent: dict[int, Job] = {}
        """The jobs that were taken, by the number of the order."""

    async def transact(
        self, held: Held, arguments: dict[str, Any], options: dict[str, str]
    ) -> None:
        """One transaction. Where the job is refused and the transaction is said to go on, it does, with another job."""
        ledger = self._ledger
        order = ledger.begin()
        await ledger.insert(held, order)
        conn = extconn.external(held.conn, savepoint=ledger.rng.random() < 0.5)
        try:
            await ledger.defer(conn, order, arguments, **options)
        except ConnectorException as exc:
            said = str(exc)
        else:
            arguments = {"order_id": order, **arguments}
            queue = options.get("queue", "default")
            self.sent[order] = arguments, queue, options.get("lock"), options.get("queueing_lock")
            await ledger.commit(held, order)
            return
        assert re.search(self._reason, said), said
        assert "0x" not in said, "the bytes of a character"
        if "Your transaction is as it was before." in said:
            await ledger.defer(held.conn, order)
            await ledger.commit(held, order)
        else:
            assert "roll it back" in said, said
            await done(held.rollback())

    def stored(self) -> dict[int, Job]:
        """What those jobs have become."""
        with psycopg.connect(self._ledger.dsn) as conn:
            rows = conn.execute(_STORED).fetchall()
        jobs = [tuple(column and column.decode() for column in row) for row in rows]
        read = [(json.loads(args), *rest) for args, *rest in jobs]
        return {job[0]["order_id"]: job for job in read if job[0]["order_id"] in self.sent}
