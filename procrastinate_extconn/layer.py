"""Whether the layer is on, for the process or for one connector, and what it was told."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from procrastinate.connector import BaseConnector
from procrastinate.manager import JobManager
from procrastinate.testing import InMemoryConnector

from .options import OutsideMode

DEFAULT_MODE: OutsideMode = "warn"


class Modes(NamedTuple):
    """What `patch` was told for one connector; None leaves it to `install`."""

    outside_transaction: OutsideMode | None = None
    without_connection: OutsideMode | None = None


_UNSET = Modes()


class Layer:
    """The state that `install` and `patch` change. There is one, in `layer`."""

    def __init__(self) -> None:
        self.installed = False
        self.outside_transaction: OutsideMode = DEFAULT_MODE
        self.without_connection: OutsideMode | None = None
        self.patched: WeakKeyDictionary[BaseConnector, Modes] = WeakKeyDictionary()
        self.managers: WeakSet[JobManager] = WeakSet()
        """The job managers of apps that were patched, whose connector may be replaced."""
        self.own_connectors: WeakSet[BaseConnector] = WeakSet()
        """Connectors that need no patching."""
        self.strict: WeakSet[BaseConnector] = WeakSet()
        """Connectors in memory that have a mode of their own."""

    def is_on(self, connector: BaseConnector) -> bool:
        """Whether *connector* takes any connection. `InMemoryConnector` never does."""
        return (self.installed or connector in self.patched) and not isinstance(
            connector, InMemoryConnector
        )

    def mode_of(self, connector: BaseConnector) -> OutsideMode | None:
        """The transaction guard's mode that `patch` was given for *connector*, if any."""
        return self._modes_of(connector).outside_transaction

    def without_connection_of(self, connector: BaseConnector) -> OutsideMode:
        """What to do with a call on *connector* that was given no connection."""
        outside, without = self._modes_of(connector)
        mode = without or self.without_connection
        if mode is not None:
            return mode
        return "error" if (outside or self.outside_transaction) == "error" else "allow"

    def _modes_of(self, connector: BaseConnector) -> Modes:
        return self.patched.get(connector, _UNSET) if self.patched else _UNSET

    def is_on_anywhere(self) -> bool:
        """Whether any connector does."""
        return self.installed or bool(self.patched) or bool(self.own_connectors)


layer: Layer = Layer()
