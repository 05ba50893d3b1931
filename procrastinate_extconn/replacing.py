"""What is replaced in Procrastinate until `uninstall`: which attribute, what stood there, and what we put there."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

lock: Any = threading.RLock()
"""Guards what is replaced, and what `install` and `patch` change."""

_replaced: dict[tuple[Any, str, str], tuple[Any, Any]] = {}
"""(class, module or object, attribute, who replaced it) -> (what stood there, what we put there)."""


def replace(owner: Any, name: str, new: Any, by: str) -> None:
    """Put *new* where *owner* has *name*, once.

    :param by: the module that does so. Several may replace one attribute; the last is undone first.
    """
    with lock:
        if (owner, name, by) not in _replaced:
            _replaced[owner, name, by] = vars(owner).get(name), new
            setattr(owner, name, new)


def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any], by: str) -> bool:
    """Put ``wrapper(attribute)`` in the place of an attribute, once.

    :returns: whether *owner* itself has the attribute.
    """
    with lock:
        if name in vars(owner) and (owner, name, by) not in _replaced:
            replace(owner, name, wrapper(vars(owner)[name]), by)
    return name in vars(owner)


def restore(keep: str = "") -> None:
    """Undo everything. An attribute that somebody has wrapped since stays as it is, with a warning.

    :param keep: the module that still needs what it has replaced.
    """
    for (owner, name, by), (old, new) in reversed(list(_replaced.items())):
        if by == keep:
            continue
        if vars(owner).get(name) is not new:
            warnings.warn(
                f"{getattr(owner, '__name__', owner)}.{name} has been wrapped by somebody else since install(): it "
                "stays as it is",
                RuntimeWarning,
                stacklevel=4,
            )
            continue
        if old is None:
            delattr(owner, name)
        else:
            setattr(owner, name, old)
        del _replaced[owner, name, by]
