"""``procrastinate-extconn demo``: the main job, on a real server with a real worker."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import click
import psycopg
from procrastinate.exceptions import ProcrastinateException

from ...kinds import all_kinds
from ...temporary_server import ServerError
from .. import console
from ..server_address import ServerAddress
from . import report
from .demonstration import Demonstration, Outcome
from .interrupts import Interrupts
from .workspace import NotRemoved, Workspace, on_server, own_server


@click.command()
@click.option(
    "--dsn",
    metavar="DSN",
    help="Use this server, not one of its own. The demo works in a new database there, or in a new schema where it "
    "cannot have a database, and removes it again. Leave the password to PGPASSWORD or a password file.",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Leave the demo's own server running until Ctrl-C, with an empty database for your first steps.",
)
@click.option("--verbose", "-v", is_flag=True, help="Show every kind of connection.")
@console.as_json
def demo(dsn: str | None, keep: bool, verbose: bool, as_json: bool) -> None:
    """Watch orders commit and roll back together with their jobs.

    On each kind of connection that is installed, one order is committed with its job and another is rolled back with
    its job. Then a worker runs the jobs. All that on a PostgreSQL which the demo starts, and removes.

    The exit status is 0 if everything was as it should be, and 1 if not.
    """
    if keep and dsn is not None:
        raise click.UsageError("--keep is about the demo's own server: leave out --dsn.")
    address = None if dsn is None else ServerAddress.from_option(dsn)
    outcomes: list[Outcome] = []
    kept = False
    with Interrupts() as interrupts:
        with contextlib.suppress(KeyboardInterrupt), _workspace(address, interrupts) as workspace:
            server = _run(workspace, interrupts, outcomes)
            report.show(server, outcomes, verbose=verbose, as_json=as_json)
            if keep:
                kept = True
                _keep(workspace, interrupts)
        if interrupts.received:
            console.stderr().print("Interrupted. Nothing is left behind.")
            raise SystemExit(0 if kept else 128 + interrupts.received)
    if not report.all_right(outcomes):
        raise SystemExit(1)


@contextlib.contextmanager
def _workspace(address: ServerAddress | None, interrupts: Interrupts) -> Generator[Workspace]:
    """Where the demo works, until the block ends.

    :raises click.ClickException: if something goes wrong with the server, there or in the block.
    """
    console.step("Starting PostgreSQL" if address is None else f"Connecting to {address}")
    try:
        with own_server(interrupts) if address is None else on_server(address) as workspace:
            yield workspace
    except (psycopg.Error, ProcrastinateException, ServerError, NotRemoved) as exc:
        cause = exc.__cause__ if isinstance(exc, ProcrastinateException) else None
        reason = str(cause or exc).strip()
        raise click.ClickException(address.harmless(reason) if address else reason) from exc


def _run(workspace: Workspace, interrupts: Interrupts, outcomes: list[Outcome]) -> str:
    """Place orders and run their jobs.

    :param outcomes: what becomes of the orders goes in here.
    :returns: what the server is.
    """
    kinds = [kind for kind in all_kinds() if not kind.missing()]
    demonstration = Demonstration(workspace)
    with console.Steps() as steps:
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
            return server


def _keep(workspace: Workspace, interrupts: Interrupts) -> None:
    """Say how to reach the server, and wait for Ctrl-C."""
    with psycopg.connect(workspace.address.dsn, autocommit=True) as conn:
        conn.execute("CREATE DATABASE shop TEMPLATE template0")
    report.kept(ServerAddress(workspace.address.but(dbname="shop")))
    with interrupts.allowed():
        interrupts.wait()
