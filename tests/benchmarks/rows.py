"""Rows of the table, from what contestants took."""

from __future__ import annotations

from comparing import Race
from results import Row


def times(
    what: str, against: str, result: Race, goal: float | None, *, at_best: str | None = None
) -> Row:
    """A row for what should take at most *goal* times as long as theirs.

    :param at_best: what does the same without the layer.
    """
    seconds = result.median("ours"), result.median("theirs")
    ratio = result.ratio("ours", "theirs")
    best = result.ratio(at_best, "theirs") if at_best else None
    return Row(what, against, *seconds, "s", ratio, goal, at_best=best)


def faster(
    what: str,
    against: str,
    result: Race,
    goal: float | None,
    *,
    ours: str = "ours",
    at_best: str | None = None,
) -> Row:
    """A row for what should be at least *goal* times as fast as theirs.

    :param at_best: what does the same without the layer.
    """
    seconds = result.median(ours), result.median("theirs")
    ratio = result.ratio("theirs", ours)
    best = result.ratio("theirs", at_best) if at_best else None
    return Row(what, against, *seconds, "s", ratio, goal, at_least=True, at_best=best)
