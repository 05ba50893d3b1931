"""What the doctor finds."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Status: TypeAlias = Literal["ok", "hint", "skipped", "problem"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str
    status: Status
    """``"hint"``: whether it matters depends on the app."""
    text: str
    fix: str | None = None
    """What to do, for a problem or a hint."""
