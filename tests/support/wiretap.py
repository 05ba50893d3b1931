"""A server's doorstep, where a test counts what a driver sends: what a call costs without a clock."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

_ENCRYPTION = (80877103, 80877104)
"""SSLRequest and GSSENCRequest: what asks for them gets a no, and goes on in the clear."""


class Message(NamedTuple):
    """A message of PostgreSQL's protocol, from a client."""

    type: str
    body: bytes


class Wiretap:
    """What clients have sent through it."""

    def __init__(self, dsn: str) -> None:
        self._address = conninfo_to_dict(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sent: list[Message] = []

    @property
    def dsn(self) -> str:
        """Address the server through the wiretap."""
        user, password = (quote(str(self._address.get(key) or "")) for key in ("user", "password"))
        database = quote(str(self._address["dbname"]))
        port = self._listener.getsockname()[1]
        return f"postgresql://{user}:{password}@127.0.0.1:{port}/{database}"

    def take(self) -> list[Message]:
        """All that was sent since the last call."""
        sent, self._sent = self._sent, []
        return sent

    def serve(self) -> None:
        """Take connections until `close`."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=[client], daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _relay(self, client: socket.socket) -> None:
        # Either side may go at any time, as a connection that is not closed does with its program.
        with (
            client,
            client.makefile("rb") as source,
            self._connect() as server,
            contextlib.suppress(OSError, EOFError),
        ):
            start = _body(source)
            while int.from_bytes(start[:4], "big") in _ENCRYPTION:
                client.sendall(b"N")
                start = _body(source)
            server.sendall(_packed(start))
            threading.Thread(target=_pump, args=[server, client], daemon=True).start()
            while True:
                message = Message(_read(source, 1).decode(), _body(source))
                self._sent.append(message)
                server.sendall(message.type.encode() + _packed(message.body))

    def _connect(self) -> socket.socket:
        host, port = str(self._address.get("host", "localhost")), self._address.get("port", 5432)
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection((host, int(port)))


@contextlib.contextmanager
def tapped(dsn: str) -> Iterator[Wiretap]:
    """Listen in front of the server of *dsn*."""
    wiretap = Wiretap(dsn)
    thread = threading.Thread(target=wiretap.serve)
    thread.start()
    try:
        yield wiretap
    finally:
        wiretap.close()
        thread.join()


def statements(sent: list[Message]) -> list[str]:
    """The statements that were run, as far as they were named or spelled out: a portal's is its Bind's."""
    return [message.body.decode(errors="replace") for message in sent if message.type in "QB"]


def asked(sent: list[Message]) -> list[Message]:
    """What the server was asked to do. What tidies up behind an earlier call may come late: Close, Sync, Terminate."""
    return [message for message in sent if message.type not in "CSX"]


def round_trips(sent: list[Message]) -> int:
    """How often the client asked for an answer: Query, Sync and Flush each do."""
    return sum(message.type in "QSH" for message in sent)


def _pump(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(65536):
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR)


def _packed(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


def _body(source: io.BufferedIOBase) -> bytes:
    return _read(source, int.from_bytes(_read(source, 4), "big") - 4)


def _read(source: io.BufferedIOBase, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data
