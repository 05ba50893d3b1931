"""The messages on the page "When something goes wrong"."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/discussions/when-something-goes-wrong.md"


def shown() -> list[str]:
    """The messages on the page, each in one line."""
    blocks = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [" ".join(block.split()) for block in blocks]


def as_shown(exc: Exception) -> str:
    """*exc* as the page has it, without what differs from one installation to the next."""
    message = re.sub(r"asked: [^)]*\)", "asked: sqlalchemy, psycopg)", str(exc))
    message = re.sub(r"database '[^']*', as '[^']*'", "database 'shop', as 'web'", message)
    return f"{type(exc).__name__}: {message}"
