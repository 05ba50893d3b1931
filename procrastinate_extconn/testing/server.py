"""The PostgreSQL server of a test run."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import pytest

from ..temporary_server import TemporaryServer

VARIABLE = "EXTCONN_TEST_DSN"
_DSN = pytest.StashKey[str]()


def server_dsn(config: pytest.Config) -> str:
    """The server of this run: what the environment variable says, or a temporary one that ends with the run.

    :param config: of the run; what was started is kept in it.
    :returns: a URI; its user may create databases.
    """
    if _DSN not in config.stash:
        config.stash[_DSN] = os.environ.get(VARIABLE) or _start(config)
    return config.stash[_DSN]


def _start(config: pytest.Config) -> str:
    server = TemporaryServer()
    server.start()
    config.add_cleanup(server.stop)
    return server.dsn()


def database_dsn(server: str, name: str) -> str:
    """The URI of another database on *server*."""
    parts = urlsplit(server)
    # Not geturl(), which drops the slashes of a URI without a host: `postgresql:///name?host=/socket/folder`.
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")
