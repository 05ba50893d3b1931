"""Tries one clause on one kind of connection, in bounded time, and reports what came of it."""

from __future__ import annotations

import contextvars
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from _pytest.outcomes import Failed

from ...exceptions import PluginWarning
from ...hookspecs import PROJECT_NAME
from ...kinds import Held, Kind, done, run
from ...plugins import plugins
from . import report
from .caller import Caller
from .clause import Clause
from .database import Database, shared_database
from .openings import twice
from .subjects.pools import Lender
from .wiretap import Wiretap, tapped

if TYPE_CHECKING:
    from . import PluginContract

TIME_LIMIT = 30.0
"""Seconds for one clause on one kind. The server cancels a statement after 20."""

_SEEN = pytest.StashKey["dict[tuple[str, str], str]"]()
_READ = pytest.StashKey["dict[str, str | None]"]()
_LOOK = "SELECT 1 AS number, 'a' AS text, true AS truth, NULL AS nothing"
_EXPECTED = "[(1, 'a', True, None)]"
_NEVER_OPEN = pytest.StashKey["dict[str, str]"]()


class ContractBroken(Failed):
    """A plugin does not do what the contract asks, or its test class does not let the kit find out."""

    def __init__(self, text: str) -> None:
        super().__init__(text, pytrace=False)


class Failure(NamedTuple):
    """Why a clause does not hold."""

    reason: str
    below: list[str]
    stage: str
    """``"open"`` if the connection was never there."""


def hold_to(
    clause: Clause, contract: PluginContract, kind: Kind, request: pytest.FixtureRequest
) -> None:
    """Try *clause* and raise what pytest shows.

    :raises ContractBroken: unless the clause holds, or is exempt and does not.
    """
    _require_plugin(kind, request)
    earlier = request.config.stash.setdefault(_NEVER_OPEN, {})
    if kind.id in earlier:
        pytest.skip(f"not tried: `open` of {kind.id} failed before, in {earlier[kind.id]}")
    database = _database(request.config)
    failure = _try(clause, contract, kind, database)
    if failure and failure.stage != "open" and clause.on != "pools":
        _require_readable(kind, request.config, database)
    text = failure and _text(clause, kind, failure, request.config, database)
    if failure and failure.stage == "open":
        earlier[kind.id] = clause.name
    reason = contract.exempt.get(clause.name)
    if reason is not None and not (failure and failure.stage == "open"):
        if failure:
            pytest.xfail(f"{reason} ({failure.reason.splitlines()[0]})")
        raise ContractBroken(
            f"the exemption from {clause.name} is no longer needed on {kind.id}: the plugin {kind.plugin!r} keeps the "
            "clause. Remove it from `exempt`"
        )
    if text:
        raise ContractBroken(text)


def _require_plugin(kind: Kind, request: pytest.FixtureRequest) -> None:
    """Fail once and stop the run if there is no such plugin: every clause would say the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        found = plugins()
    if kind.plugin in found.names():
        return
    failed = {failure.name: failure.reason for failure in found.failures}
    if kind.plugin in failed:
        text = f"the plugin {kind.plugin!r} could not be loaded: {failed[kind.plugin]}"
    else:
        text = (
            f"there is no plugin {kind.plugin!r} with execute_on_external, only {', '.join(found.names())}. Install "
            f'its distribution, which needs an entry point {kind.plugin!r} in the group "{PROJECT_NAME}", or call '
            f"procrastinate_extconn.register(plugin, {kind.plugin!r}) first"
        )
    request.session.shouldstop = f"the plugin {kind.plugin!r} was not found"
    raise ContractBroken(text)


def _require_readable(kind: Kind, config: pytest.Config, database: Database) -> None:
    """Once a clause has failed, see whether the kit can read on this kind at all, so that no plugin is blamed for it.

    :raises ContractBroken: the first time, if it cannot. Other clauses are then left out.
    """
    read = config.stash.setdefault(_READ, {})
    if kind.id not in read:
        read[kind.id] = rows = _looked(kind, database)
        if rows is not None:
            raise ContractBroken(
                f"`Held.execute` of {kind.id} gives {rows} for `{_LOOK}`, where the kit needs {_EXPECTED}. Make such "
                "tuples in `execute`, or leave out of the variant what changes plain numbers and texts"
            )
    if read[kind.id] is not None:
        pytest.skip(f"not tried: the kit cannot read with `Held.execute` of {kind.id}")


def _looked(kind: Kind, database: Database) -> str | None:
    """What the kit reads, if that is not what it should be."""
    found: list[str] = []

    async def look(held: Held) -> None:
        rows = await done(held.execute(_LOOK))
        found.append(repr([row if isinstance(row, dict) else tuple(row) for row in rows]))

    def attempt() -> None:
        with suppress(BaseException):  # The clause has met the same, and tells of it.
            run(kind, database.dsn, look)

    _within(TIME_LIMIT, attempt)
    return found[0] if found and found[0] != _EXPECTED else None


def _database(config: pytest.Config) -> Database:
    try:
        return shared_database(config)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is not the plugin's fault
        text = f"the kit cannot use its PostgreSQL server: {type(exc).__name__}"
        if isinstance(exc, psycopg.Error) and exc.diag.message_primary:
            text += f": {exc.diag.message_primary}"
    raise ContractBroken(
        f"{text}. EXTCONN_TEST_DSN names a server on which the user may create databases"
    )


def _try(
    clause: Clause, contract: PluginContract, kind: Kind, database: Database
) -> Failure | None:
    stage = ["open" if clause.prepared is not twice else "open another"]
    errors: list[tuple[str, BaseException]] = []

    async def main(held: Any) -> None:
        stage[0] = "clause"
        try:
            subject = (Lender if clause.on == "pools" else Caller)(kind, held, database)
            subject.wiretap = wiretap
            await clause.body(contract, subject)
            stage[0] = "over" if subject.gone else "close"
        except BaseException as exc:
            errors.append((stage[0], exc))
            raise

    def attempt() -> None:
        try:
            run(clause.prepared(kind), wiretap.dsn if wiretap else database.dsn, main)
        except BaseException as exc:  # noqa: BLE001 - a plugin or its driver may raise anything
            errors.append((stage[0], exc))

    with ExitStack() as stack:
        wiretap: Wiretap | None = None
        if clause.tapped:
            encrypted = database.witness.pgconn.ssl_in_use
            wiretap = stack.enter_context(tapped(database.dsn, encrypted=encrypted))
        stuck = _within(TIME_LIMIT, attempt)
    if stuck is not None and not errors:
        return Failure(f"it takes more than {TIME_LIMIT:.0f} seconds", stuck, stage[0])
    if not errors or errors[0][0] == "over":
        return None
    at, error = errors[0]  # closing the connection may have gone wrong too, which matters less
    if isinstance(error, (pytest.skip.Exception, KeyboardInterrupt, SystemExit)):
        raise error.with_traceback(None)
    return Failure(report.why(error), report.details(error), at)


def _within(seconds: float, call: Callable[[], None]) -> list[str] | None:
    """Make a call in a thread of its own. If it does not come back, leave it there and say where it stands."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=[call], daemon=True)
    thread.start()
    thread.join(seconds)
    return report.where(thread.ident) if thread.is_alive() else None


def _text(
    clause: Clause, kind: Kind, failure: Failure, config: pytest.Config, database: Database
) -> str:
    reason, below = failure.reason, failure.below
    seen = config.stash.setdefault(_SEEN, {})
    first = seen.setdefault((kind.id, reason), clause.name)
    if first != clause.name:
        reason, below = f"as in {first}: {reason.splitlines()[0]}", []
    if failure.stage == "open":
        lines = [f"the test's own `open` of {kind.id} failed, before the plugin was asked", reason]
        text = "\n".join([*lines, *below])
    else:
        if failure.stage == "open another":
            reason = f"two connections at once cannot be opened: {reason}"
        elif failure.stage == "close":
            reason = f"the connection cannot be closed after this clause: {reason}"
        text = report.breach(clause, kind.plugin, kind.id, reason, below)
    return report.without_secrets(text, database.dsn, database.server)
