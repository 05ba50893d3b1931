"""Where a command finds its server, as libpq understands it, and how to speak of it without the password."""

from __future__ import annotations

import re
from typing import Any

import click
from psycopg import Connection, ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

CONNECT_TIMEOUT = 5  # seconds

_DIALECT = re.compile(r"^(postgres(?:ql)?)\+\w+://")
"""How SQLAlchemy's URLs begin."""
_IN_URI = re.compile(r"(://[^\s:/@]*:)[^\s@]*@")
_IN_CONNINFO = re.compile(r"(password\s*=\s*)('[^']*'|\S+)", re.IGNORECASE)


_ADVICE = (
    "it cannot be read: it should look like postgresql://user:password@host:port/database, with special characters "
    "in the password percent-encoded (@ is %40, / is %2F)"
)


class InvalidDsn(ValueError):
    """A DSN that libpq cannot read, or would read as something else than was meant. Never quotes it."""


class ServerAddress:
    """A DSN. What it leaves out libpq knows: from ``PGHOST``, ``PGUSER`` and so on, a service or a password file.

    :param dsn: a URI or ``key=value`` pairs.
    :raises InvalidDsn: if it cannot be read.
    """

    def __init__(self, dsn: str = "") -> None:
        try:
            given = conninfo_to_dict(_DIALECT.sub(r"\1://", dsn))
        except ProgrammingError:
            # libpq's own message quotes what it cannot read, which may be the password.
            raise InvalidDsn(_ADVICE) from None
        self._given = {name: str(value) for name, value in given.items() if value}
        self._defaults = {
            option.keyword.decode(): option.val.decode()
            for option in Conninfo.get_defaults()
            if option.val
        }
        # An unescaped @ or / in the password makes libpq take the rest of it for a host or a port.
        if "@" in self._given.get("host", "") or not self.get("port").replace(",", "").isdigit():
            raise InvalidDsn(_ADVICE)

    @classmethod
    def from_option(cls, dsn: str) -> ServerAddress:
        """What an option ``--dsn`` says.

        :raises click.BadParameter: if it cannot be read.
        """
        try:
            return cls(dsn)
        except InvalidDsn as exc:
            raise click.BadParameter(str(exc), param_hint="--dsn") from exc

    @property
    def dsn(self) -> str:
        """What to connect with. It holds the password: not for printing."""
        return self.but()

    def but(self, **changes: str) -> str:
        """The DSN with other parameters."""
        parameters: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT, **self._given, **changes}
        return make_conninfo(**parameters)

    def settle(self, conn: Connection[Any]) -> None:
        """Lead where *conn* went: drivers other than libpq know no service, password file or list of hosts."""
        info = conn.info
        found = {
            "host": info.host,
            "port": str(info.port),
            "user": info.user,
            "password": info.password,
            "dbname": info.dbname,
        }
        self._given.pop("hostaddr", None)
        self._given |= {name: value for name, value in found.items() if value}

    def __str__(self) -> str:
        user = self.get("user")
        host = self.get("host") or self.get("hostaddr") or "the local socket"
        return f"{self.get('dbname') or user} on {host}:{self.get('port')} as {user}"

    def harmless(self, text: str) -> str:
        """*text*, which a driver wrote, without the password."""
        text = _IN_CONNINFO.sub(r"\1***", _IN_URI.sub(r"\1***@", text))
        password = self.get("password")
        # Where it is a name as well, as in postgres:postgres, hiding it would only make the text unreadable.
        names = [self.get(name) for name in ("user", "dbname", "host", "port")]
        return text.replace(password, "***") if password and password not in names else text

    def get(self, name: str) -> str:
        """A parameter, or what libpq would take for it; empty if nothing."""
        return self._given.get(name) or self._defaults.get(name, "")
