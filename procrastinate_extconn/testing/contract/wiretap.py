"""A relay in front of the server that records what a driver sends, and what the server completed."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
from collections.abc import Generator
from typing import NamedTuple
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

_SSL_REQUEST = 80877103
_ENCRYPTION = (_SSL_REQUEST, 80877104)
"""SSLRequest and GSSENCRequest. The answer is no, so the client goes on in the clear."""


class Message(NamedTuple):
    """A message of PostgreSQL's protocol."""

    type: str
    body: bytes


class Wiretap:
    """What clients have sent through it.

    :param dsn: of the server.
    :param encrypted: whether the server wants TLS. The client is spoken to in the clear.
    """

    def __init__(self, dsn: str, *, encrypted: bool = False) -> None:
        self._address = conninfo_to_dict(dsn)
        self._encrypted = encrypted
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sent: list[Message] = []
        self._completed: list[str] = []

    @property
    def dsn(self) -> str:
        """Address the server through the wiretap."""
        user, password, database = (
            quote(str(self._address.get(key) or ""), safe="")
            for key in ("user", "password", "dbname")
        )
        port = self._listener.getsockname()[1]
        return f"postgresql://{user}:{password}@127.0.0.1:{port}/{database}?sslmode=disable"

    def take(self) -> list[Message]:
        """All that was sent since the last call."""
        sent, self._sent = self._sent, []
        return sent

    def completed(self) -> list[str]:
        """The tags of the statements that the server has completed since the last call, such as ``SELECT 1``."""
        completed, self._completed = self._completed, []
        return completed

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
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            start = _body(source)
            while int.from_bytes(start[:4], "big") in _ENCRYPTION:
                client.sendall(b"N")
                start = _body(source)
            server.sendall(_packed(start))
            threading.Thread(target=self._answer, args=[server, client], daemon=True).start()
            while True:
                message = Message(_read(source, 1).decode(), _body(source))
                self._sent.append(message)
                server.sendall(message.type.encode() + _packed(message.body))

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), server.makefile("rb") as source:
            while True:
                kind, body = _read(source, 1), _body(source)
                if kind == b"C":
                    self._completed.append(body.rstrip(b"\0").decode())
                client.sendall(kind + _packed(body))
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> socket.socket:
        host = str(self._address.get("host") or "localhost")
        port = self._address.get("port") or 5432
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        server = socket.create_connection((host, int(port)))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._encrypted:
            return server
        server.sendall(_packed(_SSL_REQUEST.to_bytes(4, "big")))
        server.recv(1)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(server)


@contextlib.contextmanager
def tapped(dsn: str, *, encrypted: bool = False) -> Generator[Wiretap]:
    """Listen in front of the server of *dsn*."""
    wiretap = Wiretap(dsn, encrypted=encrypted)
    thread = threading.Thread(target=wiretap.serve, daemon=True)
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


def _packed(body: bytes) -> bytes:
    return (len(body) + 4).to_bytes(4, "big") + body


def _body(source: io.BufferedIOBase) -> bytes:
    return _read(source, int.from_bytes(_read(source, 4), "big") - 4)


def _read(source: io.BufferedIOBase, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data
