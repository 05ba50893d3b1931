"""Whether the layer is on, for the process or for one connector, and what it was told."""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakSet

from procrastinate.connector import BaseConnector
from procrastinate.testing import InMemoryConnector

from .options import OutsideMode

DEFAULT_MODE: OutsideMode = "warn"


class Layer:
    """The state that `install` and `patch` change. There is one, in `layer`."""

    def __init__(self) -> None:
        self.installed = False
        self.outside_transaction: OutsideMode = DEFAULT_MODE
        self.patched: WeakKeyDictionary[BaseConnector, OutsideMode | None] = WeakKeyDictionary()
        self.own_connectors: WeakSet[BaseConnector] = WeakSet()
        """Connectors of ours, which need no patching."""

    def is_on(self, connector: BaseConnector) -> bool:
        """Whether *connector* takes any connection. `InMemoryConnector` never does."""
        return (self.installed or connector in self.patched) and not isinstance(
            connector, InMemoryConnector
        )

    def mode_of(self, connector: BaseConnector) -> OutsideMode | None:
        """The transaction guard's mode that `patch` was given for *connector*, if any."""
        return self.patched.get(connector) if self.patched else None

    def is_on_anywhere(self) -> bool:
        """Whether any connector does."""
        return self.installed or bool(self.patched) or bool(self.own_connectors)


layer: Layer = Layer()
