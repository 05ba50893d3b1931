"""The command ``procrastinate-extconn``. What it is made with is an extra, so nothing is imported before it runs."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line."""
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"procrastinate-extconn: the command line needs {' and '.join(missing)}: "
            "run `pip install 'procrastinate-extconn[cli]'`"
        )
    from .group import cli

    cli(prog_name="procrastinate-extconn")
