"""The command ``procrastinate-extconn``. What it is made with is an extra, so nothing is imported before it runs."""

from __future__ import annotations

import sys

from ..known_plugins import install_line, where


def main() -> None:
    """Run the command line."""
    try:
        from .group import cli
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        sys.exit(
            f"procrastinate-extconn: the command line needs {missing}, which is not installed: "
            f"run `{install_line(extras='cli')}`{where()}"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    cli(prog_name="procrastinate-extconn")
