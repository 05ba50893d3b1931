"""Ctrl-C and SIGTERM end a command where it can be ended, and only there."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupts:
    """Inside the ``with`` block a signal is noted, and raised as `KeyboardInterrupt` where `allowed` says so.

    So what makes something or clears it away runs to its end, however often somebody presses Ctrl-C.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that came."""
        self._allowed = False
        self._previous: dict[int, Any] = {}
        self._report: Any = None

    def __enter__(self) -> Interrupts:
        logging.getLogger("asyncio").addFilter(self._is_of_interest)
        self._report, sys.unraisablehook = sys.unraisablehook, self._unraisable
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if not self.received:
            logging.getLogger("asyncio").removeFilter(self._is_of_interest)
            sys.unraisablehook = self._report

    def _is_of_interest(self, record: logging.LogRecord) -> bool:
        # A task of some driver's that was interrupted too: asyncio tells so, maybe as late as at the exit.
        return not self.received

    def _unraisable(self, exception: sys.UnraisableHookArgs) -> None:
        # A signal may come where nothing can be raised, as while an import drops its lock: the next block raises it.
        if not (self.received and issubclass(exception.exc_type, KeyboardInterrupt)):
            self._report(exception)

    @contextlib.contextmanager
    def allowed(self) -> Generator[None]:
        """Let a signal interrupt the block, one that came before it included."""
        self._allowed = True
        try:
            if self.received:
                raise KeyboardInterrupt
            yield
        finally:
            self._allowed = False

    def wait(self) -> None:
        """Wait for a signal, in a block that `allowed` lets be interrupted.

        :raises KeyboardInterrupt: when it comes.
        """
        while True:
            time.sleep(3600)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._allowed:
            # The exception that psycopg and asyncio know: they cancel what they are waiting for.
            raise KeyboardInterrupt
