"""What an author reads when a clause is broken: clause, reason, and the driver's own error, without a secret."""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from .clause import Broken, Clause

_OURS = str(Path(__file__).parents[2])
_STANDARD = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
_MACHINERY = ("_pytest", "pluggy", "procrastinate", "greenlet")
_FRAMES = 3


def why(error: BaseException) -> str:
    """The reason in one line or a few."""
    return str(error) if isinstance(error, Broken) else _line(error)


def details(error: BaseException) -> list[str]:
    """The errors below the reason, the driver's own last, and where in the author's or driver's files it came up."""
    lines: list[str] = []
    below = error.__cause__ if isinstance(error, Broken) else error
    if below is None:
        return lines
    if isinstance(error, Broken):
        lines.append(_line(below))
    deepest = below
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
        lines.append(f"from {_line(deepest)}")
    frames = _places(deepest.__traceback__) or _places(below.__traceback__)
    return [line for line in dict.fromkeys(lines) if line != why(error)] + frames


def breach(clause: Clause, plugin: str, kind: str, reason: str, below: Iterable[str]) -> str:
    """The whole text of a broken clause."""
    return "\n".join(
        [
            f"plugin {plugin!r} breaks the contract on {kind}",
            f"clause {clause.name}: {clause.sentence}",
            f"why: {reason}",
            *below,
        ]
    )


def without_secrets(text: str, *dsns: str) -> str:
    """*text* without an address or a password in it."""
    text = re.sub(r"\bpostgres(?:ql)?(?:\+\w+)?://[^\s'\"]+", "<DSN>", text)
    for dsn in dsns:
        password = conninfo_to_dict(dsn).get("password")
        for secret in {str(password), quote(str(password), safe="")} if password else ():
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "<password>", text)
    return text


def where(thread: int | None) -> list[str]:
    """Where a thread that has not come back stands."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] - it is documented
    frame = frames.get(thread or 0)
    return _shown(traceback.extract_stack(frame)) if frame else []


def _places(trace: TracebackType | None) -> list[str]:
    return _shown(traceback.extract_tb(trace))


def _shown(frames: Iterable[traceback.FrameSummary]) -> list[str]:
    theirs = [one for one in frames if not _is_machinery(one.filename)]
    return [f"  {one.filename}:{one.lineno} in {one.name}: {one.line}" for one in theirs[-_FRAMES:]]


def _is_machinery(file: str) -> bool:
    if file.startswith(_OURS):
        return "builtin" not in Path(file).parts
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1] in _MACHINERY
    return file.startswith(_STANDARD) or file.startswith("<")


def _line(error: BaseException) -> str:
    cls = type(error)
    module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    text = str(error).strip()
    return f"{module}{cls.__qualname__}" + (f": {text}" if text else "")
