"""The keeper of a temporary server: a script for this package, on the standard library alone.

The first line of its input holds the settings. The commands ``start`` and ``kill`` follow, each
answered with a line of JSON, then ``stop``. The end of the input means ``stop`` as well: it comes
when the owner is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn, TypedDict

# From <sys/prctl.h>.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
START_TIMEOUT = 60  # seconds


class Settings(TypedDict):
    """What a keeper has to know."""

    host: str
    password: str
    bin_dir: str
    bundled: bool
    initdb_args: list[str]
    options: dict[str, str]
    primary_port: int | None


class ProgramFailed(Exception):
    """One of PostgreSQL's programs failed. The text is the end of what it said."""


class Cluster:
    """A data folder and the server on it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.data: Path = folder / "data"
        self.log: Path = folder / "log"
        self.password_file: Path = folder / "password"
        self.pid_file: Path = self.data / "postmaster.pid"
        self.bin_dir: Path = Path(settings["bin_dir"])
        # Below the range from which systems take ports for outgoing connections. In that range, a
        # client that waits for its server can be connected to itself.
        self.ports: list[int] = random.sample(range(10_000, 32_768), k=10)
        self.server: subprocess.Popen[bytes] | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.libc: ctypes.CDLL = ctypes.CDLL(None)
        if sys.platform == "linux":  # a killed server's children become ours, to be waited for
            self.libc.prctl(PR_SET_CHILD_SUBREAPER, 1)

    def create(self) -> None:
        """Make the data folder: new, or a copy of the primary's."""
        self.data.mkdir(mode=0o700)
        self.password_file.touch(mode=0o600)
        self.password_file.write_text(self.settings["password"])
        if os.geteuid() == 0:
            self.give_to_nobody()
        same = "--username=postgres", "--no-sync"
        if self.settings["primary_port"] is not None:
            address = f"--host={self.settings['host']}", f"--port={self.settings['primary_port']}"
            program = self.run("pg_basebackup", *address, *same, "-R", "-cfast")
        else:
            args = [*same, f"--pwfile={self.password_file}", "--encoding=UTF8", "--auth=password"]
            # Thousands of rounds of hashing make each connection slow and a random password no
            # better. Since version 16 one is enough, but not for each driver's SCRAM.
            if self.settings["bundled"]:
                args.append("--set=scram_iterations=1")
            program = self.run("initdb", *args, *self.settings["initdb_args"])
        if program.wait() != 0:
            raise self.failure()

    def give_to_nobody(self) -> None:
        """Prepare for another user than root, as whom PostgreSQL refuses to run.

        The folder itself, the log and the programs stay root's: an account that many share must
        not be able to lead root astray in there.
        """
        self.uid, self.gid = pwd.getpwnam("nobody")[2:4]
        self.folder.chmod(0o711)
        for path in (self.data, self.password_file):
            os.chown(path, self.uid, self.gid)
        if self.settings["bundled"]:
            # Where they are, others may not be let in, and that is not for us to change.
            package, programs = self.bin_dir.parent.parent, self.folder / "programs"
            for source in (package, package.with_name(f"{package.name}.libs")):
                if source.exists():
                    unneeded = shutil.ignore_patterns("include", "*.a")
                    shutil.copytree(source, programs / source.name, ignore=unneeded)
            for path in (programs, *programs.rglob("*")):
                path.chmod(0o755)
            self.bin_dir = programs / self.bin_dir.relative_to(package.parent)

    def run(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        """Start one of PostgreSQL's programs on the data folder."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [self.bin_dir / program, "-D", self.data, *args],
                cwd=self.folder,
                # No secrets of root's, and no locale that was never generated.
                env={"LC_ALL": "C", "PGPASSWORD": self.settings["password"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self.uid,
                group=self.gid,
                extra_groups=None if self.uid is None else [],
                # Called after the change of user, which would undo it. There are no threads here.
                preexec_fn=self.end_with_keeper,
            )

    def end_with_keeper(self) -> None:
        """Have the calling process end when the keeper itself is killed."""
        if sys.platform == "linux":
            self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)

    def start(self) -> dict[str, str]:
        """Start the server on a free port, and on that same one ever after."""
        options = {
            "listen_addresses": self.settings["host"],
            "unix_socket_directories": str(self.data),
            "dynamic_shared_memory_type": "mmap",  # within the folder, that is
            "fsync": "off",
            "full_page_writes": "off",
            **self.settings["options"],
        }
        args = [f"--{name}={value}" for name, value in options.items()]
        for port in self.ports:
            if self.server is None or self.server.poll() is not None:
                self.server = self.run("postgres", f"--port={port}", *args)
            if self.becomes_ready(self.server):
                self.ports = [port]
                return {"port": str(port), "data_dir": str(self.data)}
        raise self.failure()

    def becomes_ready(self, server: subprocess.Popen[bytes]) -> bool:
        """Wait until *server* takes connections, and return False if it ends instead."""
        deadline = time.monotonic() + START_TIMEOUT
        while server.poll() is None:
            lines: list[str] = []
            # The file may still be that of a server that was killed, and go while we look.
            with contextlib.suppress(FileNotFoundError):
                lines = self.pid_file.read_text().splitlines()
            if len(lines) > 7 and lines[0] == str(server.pid) and lines[7].strip() == "ready":
                return True
            if time.monotonic() > deadline:
                raise self.failure()
            time.sleep(0.01)
        return False

    def kill(self) -> dict[str, str]:
        """End the server and its children with SIGKILL."""
        if self.server is not None and self.server.poll() is None:
            pid = self.server.pid
            try:
                # Stopped, it neither starts children nor forgets those that end.
                os.kill(pid, signal.SIGSTOP)
                os.waitpid(pid, os.WUNTRACED)
                children = Path(f"/proc/{pid}/task/{pid}/children")
                for child in children.read_text().split() if children.exists() else ():
                    os.kill(int(child), signal.SIGKILL)
            finally:
                self.server.kill()
                self.wait()
        return {}

    def close(self) -> None:
        """End the server at once and in good order."""
        if self.server is not None:
            if self.server.poll() is not None and self.pid_file.exists():
                self.start()  # killed, it left shared memory behind, which the next one removes
            self.server.send_signal(signal.SIGQUIT)
            self.wait()

    def wait(self) -> None:
        """Wait for the server, and for such of its children as have survived it."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def failure(self) -> ProgramFailed:
        """Return the exception for what the log says last."""
        return ProgramFailed("\n".join(self.log.read_text(errors="replace").splitlines()[-10:]))


def temporary_root() -> str:
    """Return the usual place for temporary folders, or ``/tmp`` where that one will not do."""
    usual = Path(tempfile.gettempdir())
    # A socket's path has room for some hundred characters, and is part of a quoted list.
    fits = re.fullmatch(r"[\w./+-]{1,60}", str(usual), re.ASCII)
    lets_in = os.geteuid() != 0 or all(
        place.stat().st_mode & stat.S_IXOTH for place in (usual, *usual.parents)
    )
    return str(usual) if fits and lets_in else "/tmp"  # noqa: S108 -- a private folder goes in there


def answer(reply: dict[str, str]) -> None:
    """Tell the owner, if there is one."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(reply).encode() + b"\n")


def end(*_: object) -> NoReturn:
    """Leave through all the clearing up."""
    sys.exit(1)


def main() -> None:
    """Obey the owner until it says ``stop`` or is gone, and leave nothing behind."""
    signal.signal(signal.SIGTERM, end)
    os.umask(0o022)
    try:
        settings: Settings = json.loads(sys.stdin.readline())
        with (
            tempfile.TemporaryDirectory(prefix="extconn-", dir=temporary_root()) as folder,
            contextlib.closing(Cluster(Path(folder), settings)) as cluster,
        ):
            cluster.create()
            for command in sys.stdin:
                if command == "start\n":
                    answer(cluster.start())
                elif command == "kill\n":
                    answer(cluster.kill())
                else:
                    break
    except (OSError, LookupError, ValueError, ProgramFailed) as exc:
        answer({"error": str(exc)})


if __name__ == "__main__":
    main()
