"""``procrastinate-extconn demo``: the main job, on a real server with a real worker."""

from __future__ import annotations

import contextlib

import click
import psycopg
from procrastinate.exceptions import ProcrastinateException
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...kinds import all_kinds
from ...known_plugins import KNOWN, install_line
from ...temporary_server import ServerError
from .. import console
from ..plugins import loaded_plugins
from ..server_address import ServerAddress
from .demonstration import Demonstration, Outcome
from .interrupts import Interrupts
from .workspace import NotRemoved, on_server, own_server

_CODE = """\
    import procrastinate_extconn as extconn
    extconn.install()
    process_order.configure(connection=conn).defer(order_id=42)
"""
_DISTRIBUTIONS = {"psycopg2": "psycopg2-binary"}
"""Where a module's distribution has another name."""


@click.command()
@click.option(
    "--dsn",
    metavar="DSN",
    help="Use this server, not one of its own. The demo works in a new database there, or in a new schema where it "
    "cannot have a database, and removes it again. Leave the password to PGPASSWORD or a password file.",
)
@console.as_json
def demo(dsn: str | None, as_json: bool) -> None:
    """Watch orders commit and roll back together with their jobs.

    On each kind of connection that is installed, one order is committed with its job and another is rolled back with
    its job. Then a worker runs the jobs. All that on a PostgreSQL which the demo starts, and removes.

    The exit status is 0 if everything was as it should be, and 1 if not.
    """
    server = ""
    outcomes: list[Outcome] = []
    with Interrupts() as interrupts:
        with contextlib.suppress(KeyboardInterrupt):
            server, outcomes = _run(dsn, interrupts)
        if interrupts.received:
            console.stderr().print("Interrupted. Nothing is left behind.")
            raise SystemExit(128 + interrupts.received)
    if as_json:
        _print_json(server, outcomes)
    else:
        _print(server, outcomes)
    if not _all_right(outcomes):
        raise SystemExit(1)


def _run(dsn: str | None, interrupts: Interrupts) -> tuple[str, list[Outcome]]:
    """Return what the server was, and what became of the orders.

    :raises click.ClickException: if it could not be tried.
    """
    address = None if dsn is None else ServerAddress.from_option(dsn)
    kinds = [kind for kind in all_kinds() if not kind.missing()]
    outcomes: list[Outcome] = []
    try:
        with console.Steps() as steps:
            steps.begin("Starting PostgreSQL" if address is None else f"Connecting to {address}")
            place = own_server(interrupts) if address is None else on_server(address)
            with place as workspace:
                demonstration = Demonstration(workspace)
                with interrupts.allowed():
                    server = demonstration.prepare()
                    placed = steps.begin("Committing and rolling back orders", len(kinds))
                    for outcome in demonstration.place_orders(kinds):
                        outcomes.append(outcome)
                        placed()
                # A worker that is interrupted may wait for a task that no longer ends; left alone it soon does.
                committed = [outcome for outcome in outcomes if outcome.committed_together]
                processed = steps.begin("Running the jobs with a worker", len(committed))
                demonstration.run_worker(committed, processed)
                with interrupts.allowed():
                    pass
    except (psycopg.Error, ProcrastinateException, ServerError, NotRemoved) as exc:
        cause = exc.__cause__ if isinstance(exc, ProcrastinateException) else None
        reason = str(cause or exc).strip()
        raise click.ClickException(address.harmless(reason) if address else reason) from exc
    return server, outcomes


def _all_right(outcomes: list[Outcome]) -> bool:
    return bool(outcomes) and not any(outcome.reason for outcome in outcomes)


def _print_json(server: str, outcomes: list[Outcome]) -> None:
    console.print_json(
        {
            "ok": _all_right(outcomes),
            "server": server,
            "kinds": [
                {
                    "kind": outcome.kind.id,
                    "plugin": outcome.kind.plugin,
                    "committed_together": outcome.committed_together,
                    "rolled_back_together": outcome.rolled_back_together,
                    "run_by_worker": outcome.run_by_worker,
                    "reason": outcome.reason,
                }
                for outcome in outcomes
            ],
            "not_installed": [
                {"kind": name, "install": line}
                for line, names in _not_installed().items()
                for name in names
            ],
        }
    )


def _print(server: str, outcomes: list[Outcome]) -> None:
    out = console.stdout()
    table = Table(
        "kind of connection",
        "committed\ntogether",
        "rolled back\ntogether",
        "run by\nthe worker",
        box=console.BOX,
    )
    for outcome in outcomes:
        table.add_row(
            outcome.kind.id,
            _yes_or_no(outcome.committed_together),
            _yes_or_no(outcome.rolled_back_together),
            _yes_or_no(outcome.run_by_worker),
        )
    out.print(f"\n{server}")
    out.print(table)
    _print_not_installed(out)
    failed = [outcome for outcome in outcomes if outcome.reason]
    for outcome in failed:
        out.print(f"{outcome.kind.id}: {outcome.reason}", style="red")
    if failed or not outcomes:
        out.print(
            f"\nNot as it should be: {len(failed)} of {len(outcomes)} kinds of connection.",
            style="bold",
        )
    else:
        _print_happy_end(out, len(outcomes))


def _yes_or_no(value: bool) -> Text:
    return Text("yes", "green") if value else Text("no", "bold red")


def _print_not_installed(out: Console) -> None:
    not_installed = _not_installed()
    if not_installed:
        out.print("Not installed here:", style="dim")
    for line, names in not_installed.items():
        out.print(f"  {', '.join(names)}: {line}", style="dim")
    if not_installed:
        out.print()


def _not_installed() -> dict[str, list[str]]:
    """The command that installs them -> the connections that are not there: kinds, and plugins that are known."""
    found = {install_line(name): [name] for name in KNOWN if name not in loaded_plugins().names()}
    for kind in all_kinds():
        if missing := kind.missing():
            names = [_DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in missing]
            found.setdefault(f"pip install {' '.join(names)}", []).append(kind.id)
    return found


def _print_happy_end(out: Console, number: int) -> None:
    # A paragraph is a line: a terminal folds it where it ends.
    out.print(
        f"{number} orders were committed, and their jobs with them: nobody saw either too soon, and the worker ran "
        f"each job once. {number} more were rolled back, and it is as if their jobs had never been.\n"
        "No outbox table, no relay, no job for an order that does not exist: the job was part of the transaction.\n"
    )
    out.print("In your own app, three lines:\n", style="bold")
    out.print(_CODE, style="cyan")
    out.print(
        "install() goes where your program starts. conn is any connection that you hold; if it is an asynchronous one, "
        "call `await ... .defer_async(order_id=42)`. You commit it, nobody else does.\n"
        "Whether your own database is ready, procrastinate-extconn doctor tells."
    )
