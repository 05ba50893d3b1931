"""The PostgreSQL server of a test run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ..temporary_server import TemporaryServer

VARIABLE = "EXTCONN_TEST_DSN"
_DSN = pytest.StashKey[str]()
_COMMON = ("sslmode", "sslrootcert", "sslcert", "sslkey", "options")
"""The parameters of a URI that other drivers than libpq take, too."""


def server_dsn(config: pytest.Config) -> str:
    """The server of this run: what the environment variable says, or a temporary one that ends with the run.

    :param config: of the run; what was started is kept in it.
    :returns: a URI, also if the variable holds another form of DSN. Its user may create databases.
    """
    if _DSN not in config.stash:
        given = os.environ.get(VARIABLE)
        config.stash[_DSN] = _as_connected(given) if given else _start(config)
    return config.stash[_DSN]


def _start(config: pytest.Config) -> str:
    server = TemporaryServer()
    server.start()
    config.add_cleanup(server.stop)
    return server.dsn()


def _as_connected(dsn: str) -> str:
    """The URI of the server that psycopg reaches: services, the environment and defaults are known to libpq alone."""
    with psycopg.connect(dsn) as conn:
        info = conn.info
        reached = {"host": info.host, "port": info.port, "user": info.user, "dbname": info.dbname}
        return _uri({**info.get_parameters(), "password": info.password, **reached})


def database_dsn(server: str, name: str) -> str:
    """The URI of another database on *server*."""
    return _uri({**conninfo_to_dict(server), "dbname": name})


def _uri(parts: Mapping[str, Any]) -> str:
    user, password, database = (
        quote(str(parts.get(name) or ""), safe="") for name in ("user", "password", "dbname")
    )
    host, port = str(parts.get("host") or ""), str(parts.get("port") or "")
    query = {name: parts[name] for name in _COMMON if parts.get(name)}
    if host.startswith(("/", "@")) or "," in host:  # a socket's folder, or several hosts
        query = {"host": host, **({"port": port} if port else {}), **query}
        host = port = ""
    address = f"[{host}]" if ":" in host else host
    return f"postgresql://{user}:{password}@{address}{':' if port else ''}{port}/{database}" + (
        f"?{urlencode(query, quote_via=quote, safe='/')}" if query else ""
    )
