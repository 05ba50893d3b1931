"""What the demo says of the orders that it placed."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...kinds import all_kinds
from ...known_plugins import KNOWN, install_line
from .. import console
from ..plugins import loaded_plugins, title
from ..server_address import ServerAddress
from .demonstration import Outcome

_CODE = """\
    import procrastinate_extconn as extconn
    extconn.install()
    process_order.configure(connection=conn).defer(order_id=42)
"""
_DISTRIBUTIONS = {"psycopg2": "psycopg2-binary"}
"""Where a module's distribution has another name."""


def show(server: str, outcomes: list[Outcome], *, verbose: bool, as_json: bool) -> None:
    """Print the outcomes: a line for each plugin, or for each kind of connection if *verbose*."""
    if as_json:
        _print_json(server, outcomes)
        return
    out = console.stdout()
    out.print(f"\n{server}")
    out.print(_table(outcomes, verbose=verbose))
    _print_not_installed(out, verbose=verbose)
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


def kept(address: ServerAddress) -> None:
    """Print how to reach the server that stays."""
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    parts = {f"PG{name}": address.get(key) for key, name in names.items()}
    parts["PGDATABASE"] = address.get("dbname")
    out = console.stdout()
    out.print("\nThe server runs until you press Ctrl-C. In another terminal:\n", style="bold")
    out.print(f"    export {' '.join(f'{name}={value}' for name, value in parts.items())}\n")
    out.print(
        "    postgresql://{PGUSER}:{PGPASSWORD}@{PGHOST}:{PGPORT}/{PGDATABASE}\n".format(**parts)
    )


def all_right(outcomes: list[Outcome]) -> bool:
    """Whether everything was as it should be."""
    return bool(outcomes) and not any(outcome.reason for outcome in outcomes)


def _print_json(server: str, outcomes: list[Outcome]) -> None:
    console.print_json(
        {
            "ok": all_right(outcomes),
            "server": server,
            "kinds": [
                {
                    "kind": outcome.kind.id,
                    "name": outcome.name,
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


def _table(outcomes: list[Outcome], *, verbose: bool) -> Table:
    names = ["kind", "connection"] if verbose else ["connections of", "kinds"]
    table = Table(*names, "committed\ntogether", "rolled back\ntogether", "run by\nthe worker")
    table.box = console.BOX
    for plugin in dict.fromkeys(outcome.kind.plugin for outcome in outcomes):
        of_plugin = [outcome for outcome in outcomes if outcome.kind.plugin == plugin]
        if verbose:
            for outcome in of_plugin:
                table.add_row(outcome.kind.id, outcome.name, *_cells([outcome]))
        else:
            table.add_row(title(plugin), str(len(of_plugin)), *_cells(of_plugin))
    return table


def _cells(outcomes: list[Outcome]) -> Iterable[Text]:
    for found in (
        [outcome.committed_together for outcome in outcomes],
        [outcome.rolled_back_together for outcome in outcomes],
        [outcome.run_by_worker for outcome in outcomes],
    ):
        yield Text("yes", "green") if all(found) else Text("no", "bold red")


def _print_not_installed(out: Console, *, verbose: bool) -> None:
    if not verbose:
        if plugins := _missing_plugins():
            how = "`procrastinate-extconn plugins` shows how."
            out.print(f"Not installed: {', '.join(plugins)}. {how}", style="dim")
        return
    not_installed = _not_installed()
    if not_installed:
        out.print("Not installed here:", style="dim")
    for line, names in not_installed.items():
        out.print(f"  {', '.join(names)}: {line}", style="dim")
    if not_installed:
        out.print()


def _missing_plugins() -> list[str]:
    return [name for name in KNOWN if name not in loaded_plugins().names()]


def _not_installed() -> dict[str, list[str]]:
    """The command that installs them -> the connections that are not there: kinds, and plugins that are known."""
    found = {install_line(name): [name] for name in _missing_plugins()}
    for kind in all_kinds():
        if missing := kind.missing():
            names = [_DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in missing]
            found.setdefault(f"pip install {' '.join(names)}", []).append(kind.id)
    return found


def _print_happy_end(out: Console, number: int) -> None:
    # A paragraph is a line: a terminal folds it where it ends.
    out.print(
        f"{number} orders were committed with their jobs, and a worker ran each job once. {number} more were rolled "
        "back, and their jobs with them. In your own app:"
    )
    out.print(_CODE.rstrip(), style="cyan")
    out.print("Is your own database ready? Run `procrastinate-extconn doctor`.")
