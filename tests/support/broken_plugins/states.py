"""Faults in descriptions."""

from __future__ import annotations

from typing import Any, ClassVar

from procrastinate_extconn.hookspecs import Description

from .base import Fault


class Lies(Fault):
    """Always says that there is a transaction."""

    clause = "state_after_an_error"
    why = "the state is 'in_transaction'"

    def describe(self, raw: Any) -> Description:
        return super().describe(raw)._replace(state="in_transaction")


class LiesWhenClosed(Lies):
    """Says so of a closed connection, too."""

    clause = "closed"
    why = "the connection takes no statement"


class Idles(Fault):
    """Calls a connection idle that commits each statement by itself."""

    clause = "autocommit"
    why = "the state is 'idle', where it should be 'autocommit'"

    def describe(self, raw: Any) -> Description:
        found = super().describe(raw)
        return found._replace(state="idle") if found.state == "autocommit" else found


class IdlesInStrictMode(Idles):
    """Does so, and a job slips through in strict mode."""

    clause = "autocommit_is_refused"
    why = "nothing was raised instead of OutsideTransaction"


class BeginsOnAutocommit(Fault):
    """Begins a transaction where there is none, and leaves it open."""

    clause = "autocommit"
    why = "the job on it waits for a commit"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if raw.autocommit and raw.info.transaction_status == 0:
            raw.execute("BEGIN")
        return super().execute(raw, query, args)


class Asks(Fault):
    """Asks the server for the state."""

    clause = "description_is_free"
    why = "it sends something to the server"

    def describe(self, raw: Any) -> Description:
        raw.execute("SELECT 1")
        return super().describe(raw)


class AsksAtFirst(Fault):
    """Asks the server for its version before the first statement."""

    clause = "description_is_free"
    why = "it sends something to the server"
    known: ClassVar[set[int]] = set()

    def describe(self, raw: Any) -> Description:
        if id(raw) not in self.known:
            self.known.add(id(raw))
            raw.execute("SHOW server_version")
        return super().describe(raw)


class Blind(Fault):
    """Does not describe."""

    clause = "description"
    why = "it has no describe_external"
    describe_external = None  # type: ignore[assignment]


class MistakesItsCalls(Fault):
    """Says that the connection is async."""

    clause = "description"
    why = "is_async is True"

    def describe(self, raw: Any) -> Description:
        return super().describe(raw)._replace(is_async=True)


class InventsStates(Fault):
    """Has a word of its own for a state."""

    clause = "description_is_of_the_contract"
    why = "the state is 'in-transaction'"

    def describe(self, raw: Any) -> Description:
        found: Any = super().describe(raw)
        state = found.state.replace("_", "-")
        return found._replace(state=state)  # type: ignore[no-any-return]


class BeginsWithNothing(Fault):
    """Names no line that opens a transaction, and not by leaving it away."""

    clause = "description_is_of_the_contract"
    why = "begin is ''"

    def describe(self, raw: Any) -> Description:
        return super().describe(raw)._replace(begin="")


class SpeaksAnotherDialect(Fault):
    """Names the database as its driver does."""

    clause = "is_found"
    why = "does not support external connections to postgres"

    def describe(self, raw: Any) -> Description:
        return super().describe(raw)._replace(dialect="postgres")


class ServesOneTransaction(Fault):
    """Takes a connection for closed once its first transaction has ended."""

    clause = "next_transaction"
    why = "UnusableConnection was raised, where the owner's statement ran"
    begun: ClassVar[set[int]] = set()

    def describe(self, raw: Any) -> Description:
        found = super().describe(raw)
        if found.state == "idle" and id(raw) in self.begun:
            return found._replace(state="closed")
        return found

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        self.begun.add(id(raw))
        return super().execute(raw, query, args)


class CountsOnItsOwn(Fault):
    """Knows of a transaction only what it began itself."""

    clause = "state_in_a_transaction"
    why = "the state is 'idle', where it should be 'in_transaction'"
    sent: ClassVar[set[int]] = set()

    def describe(self, raw: Any) -> Description:
        found = super().describe(raw)
        return found if id(raw) in self.sent else found._replace(state="idle")


class BeginsOnce(Fault):
    """Keeps a flag of its own, and sends no BEGIN after a COMMIT that the caller sent."""

    clause = "state_after_a_raw_commit"
    why = "the state is 'idle', but the job on it is committed by itself"
    begun: ClassVar[set[int]] = set()

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        again = id(raw) in self.begun and raw.info.transaction_status == 0
        self.begun.add(id(raw))
        if not again:
            return super().execute(raw, query, args)
        raw.autocommit = True
        rows = super().execute(raw, query, args)
        raw.autocommit = False
        return rows


class BreaksOnClosed(Fault):
    """Asks a closed connection for what it no longer knows."""

    clause = "closed"
    why = "AttributeError"

    def describe(self, raw: Any) -> Description:
        if raw.closed:
            raise AttributeError("pgconn")
        return super().describe(raw)


class SuspectsAutocommit(Fault):
    """Takes a connection without a transaction for one that commits by itself."""

    clause = "state_at_first"
    why = "the state is 'autocommit', but statements wait for a commit"

    def describe(self, raw: Any) -> Description:
        found = super().describe(raw)
        return found._replace(state="autocommit") if found.state == "idle" else found


class SuspectsItAfterCommit(SuspectsAutocommit):
    """Does so after a commit."""

    clause = "state_after_commit"


class SuspectsItAfterRollback(SuspectsAutocommit):
    """Does so after a rollback."""

    clause = "state_after_rollback"


class BeginsAgain(Fault):
    """Rolls a failed transaction back by itself, and says nothing."""

    clause = "failed_transaction"
    why = "nothing was raised instead of ConnectorException"

    def describe(self, raw: Any) -> Description:
        found = super().describe(raw)
        return found._replace(state="in_transaction") if found.state == "failed" else found

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if raw.info.transaction_status == 3:
            raw.rollback()
        return super().execute(raw, query, args)


class NamesNoFailedTransaction(BeginsAgain):
    """Has a word of its own for a transaction that has failed."""

    clause = "failed_transaction_is_named"
    why = "ConnectorException was raised instead of UnusableConnection"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if raw.info.transaction_status == 3:
            raise RuntimeError("cannot proceed")
        return Fault.execute(self, raw, query, args)
