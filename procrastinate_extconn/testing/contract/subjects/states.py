"""What `describe_external` says is what happens."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from ....exceptions import OutsideTransaction, UnusableConnection
from ....guard import READY
from ....options import external
from ....plugins import plugins
from ....sync_async import done
from ..caller import Caller, what
from ..clause import clause, must
from ..wiretap import asked


class StateClauses:
    """The description of a connection, in each state that can be brought about."""

    @clause()
    async def test_description(self, caller: Caller) -> None:
        """`describe_external` names the driver and the plugin, and says whether the connection is async."""
        name = caller.kind.plugin
        must(name in plugins().names("describe_external"), "it has no describe_external")
        description = caller.describe()
        must(description.plugin == name, f"its plugin is {description.plugin!r}")
        must(description.driver, "it names no driver")
        must(
            description.is_async is caller.kind.is_async,
            f"is_async is {description.is_async!r}",
        )

    @clause()
    async def test_description_is_of_the_contract(self, caller: Caller) -> None:
        """Each field of the description is one that the contract knows, in every state."""
        for _ in range(2):
            description: Any = caller.describe()
            states = ("idle", "in_transaction", "autocommit", "failed", "closed", "unknown")
            must(description.state in states, f"the state is {description.state!r}")
            must(isinstance(description.driver, str), f"its driver is {description.driver!r}")
            begin = description.begin
            must(begin is None or (isinstance(begin, str) and begin), f"begin is {begin!r}")
            must(description.dialect == "postgresql", f"the dialect is {description.dialect!r}")
            await caller.defer()

    @clause(tapped=True)
    async def test_description_is_free(self, caller: Caller) -> None:
        """`describe_external` sends nothing to the server, before and after the first statement."""
        assert caller.wiretap is not None
        for _ in range(2):
            caller.wiretap.take()
            caller.describe()
            must(not asked(caller.wiretap.take()), "it sends something to the server")
            await caller.execute("SELECT 1")

    @clause()
    async def test_state_at_first(self, caller: Caller) -> None:
        """The state before the first statement of a transaction says whether that statement would be committed."""
        await _state_is_true(caller)

    @clause()
    async def test_state_in_a_transaction(self, caller: Caller) -> None:
        """After a statement in a transaction, the state is ``"in_transaction"``."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        _is(caller, "in_transaction")
        await caller.defer()
        _is(caller, "in_transaction")
        await caller.execute("SAVEPOINT contract")
        await caller.error_of(caller.execute("SELECT 1 / 0"))
        await caller.execute("ROLLBACK TO SAVEPOINT contract")
        _is(caller, "in_transaction")

    @clause()
    async def test_state_after_an_error(self, caller: Caller) -> None:
        """After an error in a transaction, the state is ``"failed"``."""
        error = await caller.error_of(caller.execute("SELECT 1 / 0"))
        must(error is not None, "`Held.execute` raised nothing for `SELECT 1 / 0`")
        _is(caller, "failed")

    @clause()
    async def test_state_after_commit(self, caller: Caller) -> None:
        """The state after a commit says whether the next statement would be committed by itself."""
        await caller.defer()
        await caller.commit()
        await _state_is_true(caller)

    @clause()
    async def test_state_after_rollback(self, caller: Caller) -> None:
        """The state after a rollback says whether the next statement would be committed by itself."""
        await caller.defer()
        await caller.rollback()
        await _state_is_true(caller)

    @clause()
    async def test_state_after_a_raw_commit(self, caller: Caller) -> None:
        """After the caller's ``COMMIT`` as SQL, no state promises a transaction that the next job is not in."""
        await caller.defer()
        if await caller.error_of(caller.execute("COMMIT")) is not None:
            return
        state = caller.describe().state
        if state in READY:
            [job_id] = await caller.defer()
            must(
                not caller.database.sees(job_id),
                f"the state is {state!r}, but the job on it is committed by itself",
            )

    @clause()
    async def test_next_transaction(self, caller: Caller) -> None:
        """After a commit, a connection that takes another statement takes another job."""
        await caller.defer()
        await caller.commit()
        if await _takes_a_row(caller):
            await caller.error_of(caller.rollback())
            error = await caller.error_of(caller.defer())
            must(error is None, f"{what(error)}, where the owner's statement ran", error)

    @clause(on="autocommit")
    async def test_autocommit(self, caller: Caller) -> None:
        """A connection that commits each statement by itself has the state ``"autocommit"``, and stays so."""
        await _commit_by_itself(caller)
        for _ in range(2):
            _is(caller, "autocommit")
            [job_id] = await caller.defer()
            must(caller.database.sees(job_id), "the job on it waits for a commit")
        _is(caller, "autocommit")

    @clause(on="autocommit")
    async def test_autocommit_is_refused(self, caller: Caller) -> None:
        """With ``outside_transaction="error"``, a job on a connection that commits by itself is refused."""
        await _commit_by_itself(caller)
        conn = external(caller.conn, outside_transaction="error")
        error = await caller.error_of(caller.defer(conn=conn))
        must(
            isinstance(error, OutsideTransaction),
            f"{what(error)} instead of OutsideTransaction",
            error,
        )
        must(not caller.database.jobs(), "the job was sent")

    @clause(once_closed=True)
    async def test_closed(self, caller: Caller) -> None:
        """A connection that was closed is described as closed and refused, unless it opens itself again."""
        await _state_is_true(caller)
        await caller.close()


def _is(caller: Caller, expected: str) -> None:
    state = caller.describe().state
    must(state == expected, f"the state is {state!r}, where it should be {expected!r}")


async def _commit_by_itself(caller: Caller) -> None:
    """Bring about that each statement is committed by itself: by the end of a transaction, or by a setting."""
    with suppress(Exception):
        await caller.rollback()
    if caller.is_over():
        pytest.skip("the connection is over with its transaction")
    if await _commits(caller):
        return
    with suppress(Exception):
        await caller.rollback()
    with suppress(Exception):
        if isinstance(caller.conn.autocommit, bool):
            await _set_autocommit(caller)
    if not await _commits(caller):
        pytest.skip(
            "no connection of this kind commits by itself: if there is one, name it in `commits_by_itself`"
        )


async def _set_autocommit(caller: Caller) -> None:
    try:
        caller.conn.autocommit = True
    except AttributeError:
        await done(caller.conn.set_autocommit(True))


async def _commits(caller: Caller) -> bool:
    """Whether a row of the owner's is there for others at once. It is gone afterwards."""
    if not await _takes_a_row(caller):
        return False
    return bool(caller.database.value("WITH gone AS (DELETE FROM orders RETURNING 1) TABLE gone"))


async def _state_is_true(caller: Caller) -> None:
    """Compare what the plugin says with what becomes of a row of the owner's, and of a job."""
    state = caller.describe().state
    if state == "closed" or not await _takes_a_row(caller):
        await _is_refused(caller, state)
        return
    alone = caller.database.value("SELECT count(*) FROM orders") == 1
    [job_id] = await caller.defer()
    must(
        caller.database.sees(job_id) is alone,
        "the job and the owner's row are not in the same transaction",
    )
    if alone:
        must(state == "autocommit", f"the state is {state!r}, but statements commit by themselves")
    else:
        must(
            state in ("idle", "in_transaction"),
            f"the state is {state!r}, but statements wait for a commit",
        )


async def _takes_a_row(caller: Caller) -> bool:
    try:
        await caller.execute("INSERT INTO orders VALUES (2)")
    except Exception:  # noqa: BLE001 - a driver may raise anything
        return False
    return True


async def _is_refused(caller: Caller, state: str) -> None:
    """Check that nothing is deferred. A plugin may call closed what its driver would still use."""
    must(state == "closed", f"the state is {state!r}, but the connection takes no statement")
    error = await caller.error_of(caller.defer())
    must(
        isinstance(error, UnusableConnection),
        f"{what(error)} instead of UnusableConnection",
        error,
    )
