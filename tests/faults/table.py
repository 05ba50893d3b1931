"""Faults x kinds of connection: how many transactions ran, and how many orphans they left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

TOTAL = "all"
FIGURES = ("transactions", "of them hit", "rows committed", "orphans")


def table(tests: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    """The table as text: in each cell the transactions, and orphans where there are any.

    :param tests: (fault, kind, `FIGURES`) of each.
    """
    sums: Counter[tuple[str, str, str]] = Counter()
    for fault, kind, figures in tests:
        for name, figure in zip(FIGURES, figures, strict=True):
            for column in (fault, TOTAL):
                for row in (kind, TOTAL):
                    sums[column, row, name] += figure
    columns = [*dict.fromkeys(column for column, _, _ in sums if column != TOTAL), TOTAL]
    rows = dict.fromkeys(row for _, row, _ in sums if row != TOTAL)

    def cell(column: str, row: str) -> str:
        if not sums[column, row, "transactions"]:
            return "-"
        orphans = sums[column, row, "orphans"]
        return f"{sums[column, row, 'transactions']:,}" + (
            f" ({orphans} orphans)" if orphans else ""
        )

    lines = [["", *columns]]
    lines += [[row, *(cell(column, row) for column in columns)] for row in rows]
    lines += [[""] * len(lines[0])]
    lines += [[name, *(f"{sums[column, TOTAL, name]:,}" for column in columns)] for name in FIGURES]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{line[0].ljust(widths[0])}  "
        + "  ".join(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )
