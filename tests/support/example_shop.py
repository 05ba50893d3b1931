"""The example applications: run, and served over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from psycopg.conninfo import conninfo_to_dict

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


class Example(NamedTuple):
    """An application, and the commands that its first page tells people to run."""

    name: str
    requires: tuple[str, ...]
    prepare: tuple[str, ...]
    serve: tuple[str, ...]
    work: tuple[str, ...]
    tables: tuple[str, str] = ("orders", "confirmations")
    forget: tuple[str, ...] = ("-c", "import shop; shop.confirm_order.defer(order_id=1)")
    """Defers without a connection, which no page tells anybody to."""


class Shop:
    """A running application."""

    def __init__(self, example: Example, dsn: str) -> None:
        self._example = example
        self.tables = example.tables
        self._env = {**os.environ, "PYTHONPATH": ".", "PYTHONWARNINGS": "error"}
        for name, value in conninfo_to_dict(dsn).items():
            self._env["PGDATABASE" if name == "dbname" else f"PG{name.upper()}"] = str(value)
        self._port = 0

    def run(self, *arguments: str) -> None:
        """Run a command to its end."""
        finished = self._finished(*arguments)
        assert finished.returncode == 0, finished.stderr

    def forget(self) -> str:
        """Defer a job without a connection, outside a request, and return what is printed."""
        return self._finished(*self._example.forget).stderr

    def _finished(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=EXAMPLES / self._example.name,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    @contextlib.contextmanager
    def start(self, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """Let a command run during the block, and stop it in the end."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=EXAMPLES / self._example.name,
            env={**self._env, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    @contextlib.contextmanager
    def serve(self, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """Serve while the block runs."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        with self.start(*self._example.serve, str(self._port), **env) as server:
            self._wait_for(server)
            yield server

    def _wait_for(self, server: subprocess.Popen[bytes]) -> None:
        while server.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self._port)).close()
                return
            time.sleep(0.05)  # leaves the processor to the server
        pytest.fail(f"the server ended with status {server.returncode}")

    def order(self, *, paid: bool) -> tuple[int, Any]:
        """Place an order, and get the status of the response and what it says."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/orders?paid={str(paid).lower()}", method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=180) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, json.load(exc)

    def work(self) -> None:
        """Run the jobs that are there."""
        self.run(*self._example.work)
