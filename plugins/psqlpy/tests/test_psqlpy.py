"""The plugin for psqlpy keeps the contract that every plugin keeps."""

from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import PluginContract

CONNECTION, TRANSACTION = kinds_of("psqlpy")


class TestConnection(PluginContract):
    """A connection shows neither a BEGIN that was sent as SQL nor what became of it."""

    kinds = (CONNECTION,)
    cannot_tell = ("idle", "in_transaction", "autocommit", "failed", "sqlstate")


class TestTransaction(PluginContract):
    """A transaction shows all but its failure."""

    kinds = (TRANSACTION,)
    cannot_tell = ("failed", "sqlstate")
