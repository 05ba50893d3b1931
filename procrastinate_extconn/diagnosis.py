"""What the server said of an error, read from the driver's exception or from one that it wraps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from procrastinate.manager import QUEUEING_LOCK_CONSTRAINT

from .exceptions import PluginWarning
from .hookspecs import Diagnostic
from .plugins import plugins

# As servers and libpq write it: severity, primary message, and further lines with a keyword each.
_TEXT = re.compile(
    r"\b(?:ERROR|FATAL|PANIC): +(?P<message>.+?)(?:\n *(?:DETAIL|HINT): +(?P<detail>.*))?$",
    re.DOTALL,
)
_SQLSTATE = re.compile(r"\bSQLSTATE\W{1,3}([0-9A-Z]{5})\b", re.IGNORECASE)
# Each language has quotation marks of its own.
_LOCK_CONSTRAINT = re.compile(rf"\b{QUEUEING_LOCK_CONSTRAINT}\b")


def read(exc: BaseException) -> tuple[BaseException, Diagnostic]:
    """The driver's error in *exc*, and what the server said. Every fact is None where the server said nothing."""
    # The innermost first: a wrapper repeats a part of it, and its text quotes parameters.
    for error in reversed([*chain(exc)]):
        said = _read_one(error)
        if said is not None:
            return error, said
    return getattr(exc, "orig", None) or exc, Diagnostic()


def chain(exc: BaseException) -> Iterator[BaseException]:
    """*exc*, and the errors that it wraps or was raised from."""
    seen: set[int] = set()
    queue: list[Any] = [exc]
    while queue:
        error = queue.pop(0)
        if isinstance(error, BaseException) and id(error) not in seen:
            seen.add(id(error))
            yield error
            queue += [getattr(error, "orig", None), error.__cause__, *error.args[:1]]


def _read_one(error: BaseException) -> Diagnostic | None:
    said = _from_plugin(error) or _from_attributes(error) or Diagnostic()
    if None in said:
        said = _completed(said, str(error))
    return said if any(said) else None


def _from_plugin(error: BaseException) -> Diagnostic | None:
    try:
        return plugins().read_error(error)
    except Exception as exc:  # noqa: BLE001 - the driver's error matters more than the plugin's
        asked = " or ".join(plugins().names("read_external_error"))
        warnings.warn(
            f"the plugin {asked} failed in read_external_error: {type(exc).__name__}: {exc}",
            PluginWarning,
            stacklevel=2,
        )
        return None


def _from_attributes(error: BaseException) -> Diagnostic | None:
    fields = error.args[0] if error.args and isinstance(error.args[0], Mapping) else {}
    if "C" in fields:  # the protocol's one-letter fields
        return Diagnostic(fields["C"], fields.get("M"), fields.get("D"), fields.get("n"))
    sqlstate = _text_of(error, "sqlstate") or _text_of(error, "pgcode")
    if sqlstate is None:
        return None
    diag = getattr(error, "diag", None)
    return Diagnostic(
        sqlstate,
        _text_of(diag, "message_primary") or _text_of(error, "message"),
        _text_of(diag, "message_detail") or _text_of(error, "detail"),
        _text_of(diag, "constraint_name") or _text_of(error, "constraint_name"),
    )


def _text_of(source: object, name: str) -> str | None:
    value = getattr(source, name, None)
    return value if isinstance(value, str) and value else None


def _completed(said: Diagnostic, text: str) -> Diagnostic:
    """*said*, with each missing fact that the text of the error gives."""
    written = _TEXT.search(text)
    message = said.message or (written and written["message"])
    sqlstate = said.sqlstate or next(iter(_SQLSTATE.findall(text)), None)
    constraint = said.constraint
    # Only a unique violation, or an error of unknown SQLSTATE, is about this constraint.
    if constraint is None and sqlstate in ("23505", None):
        # The first line alone: DETAIL quotes values, under another name in each language.
        found = _LOCK_CONSTRAINT.search((message or text).partition("\n")[0])
        constraint = found and found[0]
    return Diagnostic(sqlstate, message, said.detail or (written and written["detail"]), constraint)
