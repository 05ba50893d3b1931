"""A call leaves the process and the server as they were, and tells nobody what it sent."""

from __future__ import annotations

import contextlib
import decimal
import io
import locale
import logging
import os
import sys
import threading
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..caller import Caller, new_job
from ..clause import clause, must

_BACKENDS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
"""
_PRIVATE = "hunter2 is private"


class SurroundingsClauses:
    """Logs, output, threads, connections, and what belongs to the whole process."""

    @clause()
    async def test_tells_nobody(self, caller: Caller) -> None:
        """Neither logs nor output nor warnings have a job's arguments, whether the call works or fails."""
        with _heard() as heard:
            await caller.defer(new_job({"private": _PRIVATE}))
            await caller.error_of(caller.defer(new_job({"private": _PRIVATE, "nul": "\0"})))
        told = [line for line in heard if _PRIVATE in line]
        must(not told, f"it tells them: {told[0][:200] if told else None}")

    @clause()
    async def test_process_stays(self, caller: Caller) -> None:
        """A call changes nothing of the process: environment, locale, decimal context, limits, working folder."""
        before = _process()
        await caller.defer()
        after = _process()
        changed = [name for name, value in before.items() if after[name] != value]
        must(not changed, f"it changes {', '.join(changed)}")

    @clause()
    async def test_opens_nothing(self, caller: Caller) -> None:
        """A call leaves no connection and no thread behind, and uses none but the caller's."""
        await caller.defer()
        connections, threads = caller.database.value(_BACKENDS), threading.active_count()
        for _ in range(3):
            await caller.defer()
        now = caller.database.value(_BACKENDS)
        must(now <= connections, f"after 3 calls, there are {now - connections} more connections")
        more = threading.active_count() - threads
        must(more <= 0, f"after 3 calls, there are {more} more threads")


class _Recorder(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        # Procrastinate's own tell of each job that is deferred.
        if record.name.partition(".")[0] != "procrastinate":
            self._lines.append(record.getMessage())


@contextlib.contextmanager
def _heard() -> Generator[list[str]]:
    """What is logged, printed and warned of, filled in at the end."""
    lines: list[str] = []
    output, root = io.StringIO(), logging.getLogger()
    handler, level = _Recorder(lines), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            warnings.simplefilter("always")
            yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    lines += [str(warning.message) for warning in caught]
    lines += output.getvalue().splitlines()


def _process() -> dict[str, Any]:
    return {
        "the environment": dict(os.environ),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the decimal context": repr(decimal.getcontext()),
        "the recursion limit": sys.getrecursionlimit(),
        "the limit of digits": getattr(sys, "get_int_max_str_digits", int)(),
        "the working folder": str(Path.cwd()),
        "the filters of warnings": list(warnings.filters),
    }
