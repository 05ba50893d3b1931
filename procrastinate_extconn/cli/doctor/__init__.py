"""``procrastinate-extconn doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from typing import TypeVar

import click
import psycopg
from rich.table import Table
from rich.text import Text

from ...kinds import all_kinds
from .. import console
from ..plugins import DISTRIBUTION, version
from ..server_address import ServerAddress
from .application import application
from .findings import Finding
from .installation import interface, plugin_findings
from .pooling import pooler
from .server import Server, unreachable
from .trials import Trials

C = TypeVar("C", bound=Callable[..., None])

GROUP = "procrastinate_extconn_doctor"
"""The entry-point group of functions that take a URL and yield findings. Each becomes an option of its name."""

_STYLES = {"ok": "green", "hint": "yellow", "skipped": "dim", "problem": "bold red"}

_MORE = {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}


def _more(command: C) -> C:
    """Give *command* an option for each database that another distribution looks at."""
    for name, one in _MORE.items():
        looks = f"Look at this database too, with {one.dist.name if one.dist else one.module}."
        command = click.option(f"--{name}", name, metavar="URL", multiple=True, help=looks)(command)
    return command


@click.command()
@click.option(
    "--dsn",
    metavar="DSN",
    default="",
    help="The database that your app uses. What it leaves out comes, as with psql, from PGHOST, PGPORT, PGDATABASE, "
    "PGUSER, PGPASSWORD, PGSERVICE and password files. Leave the password to these.",
)
@click.option(
    "--app",
    "path",
    metavar="PATH",
    default="",
    envvar="PROCRASTINATE_APP",
    help="Your app, as Procrastinate's own command takes it, such as shop.app. It is imported from this directory. "
    "Its connector and the modes that are set are shown.",
)
@_more
@console.as_json
def doctor(dsn: str, path: str, as_json: bool, **more: tuple[str, ...]) -> None:
    """Find out why jobs cannot be deferred in your transactions.

    Looks at Procrastinate, the plugins, your app, the server and the schema. Then each kind of connection that is
    installed defers a job, in a transaction that is rolled back. Only gaps among the ids remain.

    The exit status is 0 if all is well, 1 if there are problems, and 2 if the command was not understood.
    """
    findings = list(_examine(dsn, path))
    for name, urls in more.items():
        for url in urls:
            findings += _MORE[name].load()(url)
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        console.print_json(
            {"healthy": not problems, "findings": [one._asdict() for one in findings]}
        )
    else:
        _print(findings, problems)
    if problems:
        raise SystemExit(1)


def _examine(dsn: str, path: str) -> Iterator[Finding]:
    address = ServerAddress.from_option(dsn)
    yield from interface()
    yield from plugin_findings()
    yield from application(path)
    try:
        with psycopg.connect(address.dsn, autocommit=True, prepare_threshold=None) as conn:
            address.settle(conn)
            pooled = list(pooler(conn, address.dsn))
            findings = [*Server(conn, address).findings(), *pooled]
    except psycopg.Error as exc:
        yield unreachable(exc, address)
        return
    yield from findings
    if any(finding.status == "problem" for finding in findings):
        yield Finding("drivers", "skipped", "not tried: the rest comes first")
        return
    kinds = [kind for kind in all_kinds() if not kind.missing()]
    with console.Steps() as steps:
        tried = steps.begin("Deferring jobs, and rolling them back", len(kinds))
        trials = Trials(address, is_pooled=bool(pooled))
        yield from trials.findings(kinds, tried)
    yield from trials.autocommit()


def _print(findings: list[Finding], problems: int) -> None:
    out = console.stdout()
    table = Table.grid("", "", "", padding=(0, 2, 0, 0))
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\n-> {finding.fix}", style="bold")
        table.add_row(Text(finding.status, _STYLES[finding.status]), finding.check, text)
    out.print(f"{DISTRIBUTION} {version()}, Python {platform.python_version()}\n", style="bold")
    out.print(table)
    if problems:
        out.print(f"\n{problems} problem{'s' * (problems > 1)}.", style="bold red")
    else:
        out.print("\nAll is well.", style="bold green")
