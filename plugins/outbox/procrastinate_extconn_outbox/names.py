"""What the tables are called."""

from __future__ import annotations

import re

OUTBOX = "procrastinate_outbox"
MARKS = "procrastinate_outbox_marks"
INBOX = "procrastinate_outbox_inbox"

CHANNEL = "procrastinate_outbox"
"""The channel on which a row in a PostgreSQL outbox wakes the relays. It has no payload."""

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", re.ASCII)


def split(table: str) -> tuple[str | None, str]:
    """The schema, if there is one, and the name of a table.

    :raises ValueError: for a name that would need quotes.
    """
    if not _NAME.fullmatch(table):
        raise ValueError(
            f"table should be name or schema.name, of letters, digits and _, got {table!r}"
        )
    schema, _, name = table.rpartition(".")
    return schema or None, name
