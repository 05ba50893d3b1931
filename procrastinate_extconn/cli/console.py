"""How commands print: with styles on a terminal, in plain text elsewhere, and as JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

BOX = box.SIMPLE_HEAD
_UNFOLDED = 1000
"""The width of what is no terminal: who searches a log finds a sentence on one line."""

C = TypeVar("C", bound=Callable[..., None])


def as_json(command: C) -> C:
    """Give *command* the option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")(
        command
    )


def stdout() -> Console:
    """Where results go."""
    return _console(stderr=False)


def stderr() -> Console:
    """Where progress goes, and what went wrong."""
    return _console(stderr=True)


class _Console(Console):
    """Prints no spaces at the end of a line where nobody sees columns."""

    def print(self, *objects: Any, **options: Any) -> None:
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().split("\n")[:-1]))
        self.file.flush()


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _UNFOLDED
    return console


def print_json(value: Any) -> None:
    """Print *value* for a machine."""
    click.echo(json.dumps(value, indent=2))


def step(what: str) -> None:
    """Say what comes next, before there is a bar that moves."""
    stderr().print(f"{what} ...")


class Steps:
    """What a command is at, in a ``with`` block: a bar that moves on a terminal, a line for each step elsewhere."""

    def __init__(self) -> None:
        self._console = stderr()
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def begin(self, what: str, parts: int = 1) -> Callable[[], None]:
        """Begin a step; the one before it is done.

        :param parts: how many parts it has.
        :returns: what to call when a part is done.
        """
        if not self._console.is_terminal:
            self._console.print(f"{what} ...")
        for step in self._progress.tasks:
            self._progress.update(step.id, completed=step.total)
        step_id = self._progress.add_task(what, total=parts)
        return lambda: self._progress.advance(step_id)
