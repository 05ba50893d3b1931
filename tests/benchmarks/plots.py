"""The plots of "How fast is it", on a transparent ground and in colours that do on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

_GREY = "#808080"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "procrastinate-extconn",
    "font.family": "sans-serif",
    "figure.figsize": (7.2, 4.2),
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "text.color": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "legend.frameon": False,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
}
_BLUE = "#2a8fd8"
_PARTS = {
    "alone": (_GREY, "the driver alone"),
    "JSON": ("#2f9e5f", "JSON of the job"),
    "plugin": ("#d2691e", "the plugin"),
    "ours": (_BLUE, "the layer"),
}
_LINES: dict[str, dict[str, Any]] = {
    "raw driver": {"color": _GREY, "linestyle": "--"},
    "defer_many()": {"color": _BLUE, "linestyle": "--"},
    "batch_defer()": {"color": _BLUE},
    "native batch_defer()": {"color": "#d2691e"},
    "riverqueue": {"color": "#8e6bd1"},
    "pgqueuer": {"color": "#2f9e5f"},
}


def draw(data: Mapping[str, Any], folder: Path) -> None:
    """Draw all plots from the figures of a run."""
    with matplotlib.rc_context(_STYLE):
        _throughput(data["throughput"], folder / "throughput.svg")
        _overhead(data["overhead"], folder / "overhead.svg")


def _throughput(curves: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure, axes = plt.subplots()
    for name, line in _LINES.items():
        points = curves[name]
        sizes = [int(size) for size in points]
        axes.plot(sizes, list(points.values()), marker="o", label=name, **line)
    axes.set(xscale="log", yscale="log", xlabel="jobs in one call", ylabel="jobs a second")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=True, which="major")
    axes.legend()
    _save(figure, path)


def _overhead(bars: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure, axes = plt.subplots()
    names = list(bars)[::-1]
    raw = [bars[name]["raw"] * 1e6 for name in names]
    left = [0.0] * len(names)
    before = [0.0] * len(names)
    for part, (color, label) in _PARTS.items():
        # The ratios are of pairs, which the medians of two are not.
        ratios = [bars[name].get(part, 1.0) for name in names]
        widths = [
            max(0, one * (now - then)) for one, now, then in zip(raw, ratios, before, strict=True)
        ]
        axes.barh(names, widths, left=left, color=color, label=label)
        left = [one + width for one, width in zip(left, widths, strict=True)]
        before = ratios
    for index, (name, end) in enumerate(zip(names, left, strict=True)):
        axes.annotate(f" {bars[name]['ours']:.2f} times", (end, index), va="center")
    axes.set(xlabel="client CPU for one job, in microseconds")
    axes.margins(x=0.18)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # matplotlib ends lines in spaces.
    text = path.read_text(encoding="utf-8")
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
