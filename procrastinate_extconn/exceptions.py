"""What can go wrong with an external connection.

::

    procrastinate.exceptions.ConnectorException
    └── ExternalConnectionError
        ├── UnsupportedConnection   no plugin knows the object
        ├── SyncAsyncMismatch       an async object in a sync call, or the reverse
        ├── OutsideTransaction      not in a transaction, or no connection, where that is an error
        └── UnusableConnection      closed, lost, or in a failed transaction

A database error keeps Procrastinate's own classes: `ConnectorException`, `UniqueViolation`, `AlreadyEnqueued`.
"""

from __future__ import annotations

from procrastinate.exceptions import ConnectorException


class ExternalConnectionError(ConnectorException):
    """An external connection cannot be used as it was asked to be."""


class UnsupportedConnection(ExternalConnectionError):
    """The object is not a connection that an installed plugin can run a query on."""


class SyncAsyncMismatch(ExternalConnectionError):
    """An asynchronous object was passed to a synchronous call, or the reverse. Nothing was sent."""


class OutsideTransaction(ExternalConnectionError):
    """The connection is not in a transaction, or none was passed, and that is an error here. Nothing was sent."""


class UnusableConnection(ExternalConnectionError):
    """The connection is closed or lost, or its transaction has failed."""


class OutsideTransactionWarning(UserWarning):
    """A job was deferred on a connection that commits each statement by itself, or on none."""


class PluginWarning(UserWarning):
    """A plugin could not be loaded, or leaves out a part of the contract."""


MEANT = (
    "Where it is meant to commit by itself, as in a hook that runs after the commit (on_commit, after_commit), enter "
    "procrastinate_extconn.standalone()"
)
"""What a refusal says of `standalone`."""
