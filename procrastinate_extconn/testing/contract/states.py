"""What `describe_external` says is what happens."""

from __future__ import annotations

from typing import Any

from procrastinate.exceptions import ConnectorException

from ...exceptions import UnusableConnection
from ...plugins import plugins
from .caller import Caller
from .clause import clause, clause_once_closed


class StateClauses:
    """The description of a connection, in each state that can be brought about."""

    @clause
    async def test_description(self, caller: Caller) -> None:
        """`describe_external` names the driver and the plugin, and says whether the connection is async."""
        name = caller.kind.plugin
        assert name in plugins().names("describe_external"), "it has no describe_external"
        description = caller.describe()
        assert description.plugin == name, f"its plugin is {description.plugin!r}"
        assert description.driver, "it names no driver"
        assert description.is_async is caller.kind.is_async, f"is_async is {description.is_async}"

    @clause
    async def test_description_is_free(self, caller: Caller) -> None:
        """`describe_external` does not touch the network."""
        pid = await caller.value("SELECT pg_backend_pid()")
        before = _last_statement(caller, pid)
        caller.describe()
        assert _last_statement(caller, pid) == before, "it sent a statement to the server"

    @clause
    async def test_state_at_first(self, caller: Caller) -> None:
        """The state before the first statement of a transaction says whether that statement would be committed."""
        await _state_is_true(caller)

    @clause
    async def test_state_in_a_transaction(self, caller: Caller) -> None:
        """After a statement in a transaction, the state is ``"in_transaction"``."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        _is(caller, "in_transaction")
        await caller.defer()
        _is(caller, "in_transaction")

    @clause
    async def test_state_after_an_error(self, caller: Caller) -> None:
        """After an error in a transaction, the state is ``"failed"``."""
        try:
            await caller.execute("SELECT 1 / 0")
        except Exception:  # noqa: BLE001 - a driver may raise anything
            _is(caller, "failed")
        else:
            raise AssertionError("`Held.execute` raised nothing for `SELECT 1 / 0`")

    @clause
    async def test_state_after_commit(self, caller: Caller) -> None:
        """The state after a commit says whether the next statement would be committed by itself."""
        await caller.defer()
        await caller.commit()
        await _state_is_true(caller)

    @clause
    async def test_state_after_rollback(self, caller: Caller) -> None:
        """The state after a rollback says whether the next statement would be committed by itself."""
        await caller.defer()
        await caller.rollback()
        await _state_is_true(caller)

    @clause_once_closed
    async def test_closed(self, caller: Caller) -> None:
        """A connection that was closed is described as closed and refused, unless it opens itself again."""
        await _state_is_true(caller)
        await caller.close()


def _last_statement(caller: Caller, pid: int) -> Any:
    return caller.database.value("SELECT query_start FROM pg_stat_activity WHERE pid = %s", pid)


def _is(caller: Caller, expected: str) -> None:
    state = caller.describe().state
    assert state == expected or not caller.can_tell(expected), f"the state is {state!r}"


async def _state_is_true(caller: Caller) -> None:
    """Compare what the plugin says with what becomes of a row of the owner's, and of a job."""
    state = caller.describe().state
    if state == "closed" or not await _takes_a_row(caller):
        await _is_refused(caller, state)
        return
    alone = caller.database.value("SELECT count(*) FROM orders") == 1
    [job_id] = await caller.defer()
    assert caller.database.sees(job_id) is alone, (
        "the job and the owner's row are not in the same transaction"
    )
    if alone:
        right, truth = ["autocommit"], "statements are committed by themselves"
    else:
        right, truth = ["idle", "in_transaction"], "statements wait for a commit"
    assert state in right or not all(map(caller.can_tell, right)), (
        f"the state is {state!r}, but {truth}"
    )


async def _takes_a_row(caller: Caller) -> bool:
    try:
        await caller.execute("INSERT INTO orders VALUES (2)")
    except Exception:  # noqa: BLE001 - a driver may raise anything
        return False
    return True


async def _is_refused(caller: Caller, state: str) -> None:
    """Check that nothing is deferred. A plugin may call closed what its driver would still use."""
    assert state == "closed" or not caller.can_tell("closed"), (
        f"the state is {state!r}, but the connection takes no statement"
    )
    expected = UnusableConnection if state == "closed" else ConnectorException
    try:
        await caller.defer()
    except expected:
        return
    raise AssertionError("the connection takes no statement, but the job was deferred")
