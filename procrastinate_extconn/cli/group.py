"""The command group, and what its commands share."""

from __future__ import annotations

import click

from .demo import demo
from .doctor import doctor
from .plugins import plugins


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="procrastinate-extconn", message="%(package)s %(version)s")
def cli() -> None:
    """Defer Procrastinate jobs inside your own transaction, on any PostgreSQL connection.

    Start with `demo`, which needs no server. Where something does not work, `doctor` says why.
    """


cli.add_command(demo)
cli.add_command(plugins)
cli.add_command(doctor)
