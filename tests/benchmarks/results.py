"""What was measured, as a table for people and as data."""

from __future__ import annotations

from typing import Any, NamedTuple

_SPACE = "\N{NO-BREAK SPACE}"


class Row(NamedTuple):
    """One line of the table."""

    what: str
    against: str
    ours: float
    theirs: float
    unit: str
    """Of both: s, or B."""
    figure: float
    """What the goal is about: a ratio, or a difference in *unit*."""
    goal: float | None
    """None where the figure is only shown."""
    at_least: bool = False
    """Whether the figure says how many times as fast, so that it should be as high as the goal; otherwise, as low."""
    is_difference: bool = False
    at_best: float | None = None
    """The figure if the layer did nothing at all, where that was measured too."""

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached, if there is one."""
        if self.goal is None:
            return None
        return self.figure >= self.goal if self.at_least else self.figure <= self.goal


class Results:
    """Everything that a run has measured."""

    def __init__(self) -> None:
        self.machine: dict[str, str] = {}
        self.rows: list[Row] = []
        self.bars: dict[str, dict[str, float]] = {}
        """Plot -> contestant -> seconds for one job in a request, jobs a second in an import."""

    def data(self) -> dict[str, Any]:
        """All of it, for a file."""
        return _rounded(
            {
                "machine": self.machine,
                "rows": [{**row._asdict(), "met": row.met} for row in self.rows],
                "bars": self.bars,
            }
        )

    def table(self, *, goals: bool) -> str:
        """Make a table in Markdown, with our goals or without them."""
        lines = [
            ("what", "against", "ours", "theirs", "ours took", "goal", "reached"),
            ("---", "---", "---:", "---:", "---", "---", "---"),
            *(_cells(row) for row in self.rows),
        ]
        lines = lines if goals else [line[:-2] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "".join(
            f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |\n"
            for line in lines
        )


def _cells(row: Row) -> tuple[str, ...]:
    figure, goal = (
        "" if one is None else _amount(one, row.unit) if row.is_difference else f"{one:.2f}"
        for one in (row.figure, row.goal)
    )
    unit = "times as much" if row.unit == "B" else "times as long"
    unit = "more" if row.is_difference else "times as fast" if row.at_least else unit
    return (
        row.what,
        row.against,
        _amount(row.ours, row.unit),
        _amount(row.theirs, row.unit),
        f"{figure} {unit}",
        goal and f"at {'least' if row.at_least else 'most'} {goal}",
        {True: "yes", False: "no", None: ""}[row.met],
    )


def _amount(value: float, unit: str) -> str:
    scales = {
        "s": ((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "B": ((1e6, "MB"), (1e3, "kB"), (1, "B")),
    }
    for scale, name in scales[unit]:
        if abs(value) >= scale:
            return f"{value / scale:.3g}{_SPACE}{name}"
    return f"{value:.3g}{_SPACE}{unit}"


def _rounded(value: Any) -> Any:
    """*value* with four digits in each number, so that a new run changes no more than it has to."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
