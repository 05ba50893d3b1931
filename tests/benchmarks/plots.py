"""The plots of "How fast is it": bars that can be read on a phone, on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

_GREY = "#808080"
_BLUE = "#2a8fd8"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "procrastinate-extconn",
    "font.family": "sans-serif",
    "font.size": 12,
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
    "text.color": _GREY,
}
_OURS = ("with the layer", "defer_many()")


def draw(data: Mapping[str, Any], folder: Path) -> None:
    """Draw both plots from the figures of a run."""
    request, jobs = data["bars"]["request"], data["bars"]["import"]
    with matplotlib.rc_context(_STYLE):
        _draw(request, 1e6, "{:.0f} µs", folder / "request.svg")
        _draw(jobs, 1e-3, "{:.0f},000 a second", folder / "import.svg")


def _draw(bars: Mapping[str, float], scale: float, text: str, path: Path) -> None:
    """A bar for each contestant, its name above it and its figure behind it: no axis, no legend."""
    figure, axes = plt.subplots(figsize=(4.4, 0.3 + 0.62 * len(bars)))
    for place, (name, value) in enumerate(bars.items()):
        color = _BLUE if any(part in name for part in _OURS) else _GREY
        axes.barh(-place, value * scale, height=0.42, color=color)
        axes.annotate(name, (0, 0.26 - place), va="bottom")
        label = text.format(value * scale)
        axes.annotate(f"\N{NO-BREAK SPACE}{label}", (value * scale, -place), va="center")
    axes.set(xlim=(0, 1.45 * scale * max(bars.values())), ylim=(0.3 - len(bars), 0.72))
    axes.axis("off")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # matplotlib ends lines in spaces.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
