"""PgBouncer in front of a server, where it is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict


@contextlib.contextmanager
def pgbouncer(dsn: str, **settings: object) -> Iterator[str]:
    """Address the database of *dsn* through a PgBouncer.

    :param settings: of the section ``[pgbouncer]``.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    address = conninfo_to_dict(dsn)
    database = address.pop("dbname")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        # Nobody reads more than its first lines.
        "log_connections": 0,
        "log_disconnections": 0,
        "log_pooler_errors": 0,
        **settings,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pgbouncer.ini")
        lines = [f"{name} = {value}" for name, value in settings.items()]
        where = " ".join(f"{name}={value}" for name, value in address.items())
        path.write_text("\n".join(["[databases]", f"* = {where}", "[pgbouncer]", *lines]) + "\n")
        root = ["--user=nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [program, *root, path], stderr=subprocess.PIPE, text=True, cwd="/"
        )
        try:
            assert process.stderr
            if not any("process up" in line for line in process.stderr):
                pytest.fail("pgbouncer did not start")
            user, password = address["user"], address["password"]
            yield f"postgresql://{user}:{password}@127.0.0.1:{port}/{database}"
        finally:
            process.terminate()
            process.communicate()
