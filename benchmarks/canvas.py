"""The drawing itself, with matplotlib; imported by `plot` alone, once it is known to be there."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: no screen is needed

from matplotlib import pyplot as plt

from benchmarks.plot import Picture, number

WIDTH_IN, DPI = 7.2, 150
"""1080 pixels, as wide as a telephone shows."""
OURS, THEIRS, INK, FAINT = "#0b6e4f", "#b9c0c7", "#20262b", "#5b656e"
LARGE, MIDDLE, SMALL = 17, 14, 9.5
LABEL_WIDTH = 64
"""Characters of that size that fit; a longer label is written smaller."""
LOW_IS_GOOD = ("ms", "µs", "s", "MB")
"""Units; of all others more is better."""
WIDE_RANGE = 30
"""Largest over smallest, from which on a logarithm shows more."""


def draw(file: Path, part: Mapping[str, Any], picture: Picture, caption: str) -> None:
    """Draw one picture: bars for sides, a line for something that grows."""
    plt.rcParams.update({"font.size": MIDDLE, "text.color": INK, "axes.edgecolor": THEIRS, "xtick.color": FAINT})
    figure = _line(part, picture) if part["name"].startswith("growth-") else _bars(part, picture)
    lines = "\n".join(textwrap.fill(line, 92) for line in caption.split("\n"))
    figure.text(0.02, 0.012, lines, fontsize=SMALL, color=FAINT, va="bottom")
    figure.savefig(file, dpi=DPI, facecolor="white")
    plt.close(figure)


def _bars(part: Mapping[str, Any], picture: Picture) -> Any:
    """Draw a bar a side, the best first, each with its ratio to recalcd's where recalcd is one of the sides."""
    case, what, sides = picture
    unit = next(iter(sides.values()))["unit"]
    ranked = sorted(sides.items(), key=lambda item: item[1]["median"], reverse=unit not in LOW_IS_GOOD)
    ours = next((series for name, series in sides.items() if name.startswith("recalcd")), None)
    figure, axes = _frame(part, ": ".join(filter(None, (case, _words(what, unit)))), 0.85 * len(ranked))
    for place, (name, series) in enumerate(ranked):
        axes.barh(place, series["median"], height=0.42, color=THEIRS if ours and series is not ours else OURS)
        axes.plot([series["low"], series["high"]], [place, place], color=INK, linewidth=2)
        ratio = _ratio(series["median"], ours["median"]) if ours and series is not ours else ""
        label = f"{ratio}{name}: {number(series['median'])} {unit}"
        size = MIDDLE * min(1, LABEL_WIDTH / len(label))
        axes.text(0.0, place - 0.33, label, fontsize=size, va="bottom", transform=axes.get_yaxis_transform())
    medians = [series["median"] for _, series in ranked if series["median"] > 0]  # what takes no time has no bar
    if max(medians, default=0) > WIDE_RANGE * min(medians, default=0):
        axes.set_xscale("log")
    axes.set_ylim(len(ranked) - 0.5, -0.75)
    axes.set_xlabel("line: p10 to p90", fontsize=SMALL + 1, color=FAINT)
    return figure


def _line(part: Mapping[str, Any], picture: Picture) -> Any:
    """Draw how a figure goes along with a size, each point with its ratio to the first."""
    how, what, sides = picture
    sizes = [int(name.replace(",", "")) for name in sides]
    medians = [series["median"] for series in sides.values()]
    figure, axes = _frame(part, f"{_words(what, next(iter(sides.values()))['unit'])}. {how}", 5)
    axes.fill_between(sizes, [s["low"] for s in sides.values()], [s["high"] for s in sides.values()], color=THEIRS)
    axes.plot(sizes, medians, color=OURS, linewidth=3, marker="o", markersize=9)
    for size, median in zip(sizes, medians, strict=True):
        ratio = "" if size == sizes[0] else f"{number(median / medians[0])}x\n"
        axes.annotate(f"{ratio}{number(median)}", (size, median), (0, 12), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    axes.set_ylim(0, 1.35 * max(series["high"] for series in sides.values()))
    axes.set_xticks(sizes, list(sides), fontsize=SMALL + 2)
    axes.minorticks_off()
    axes.set_xlabel("band: p10 to p90", fontsize=SMALL + 1, color=FAINT)
    return figure


def _ratio(theirs: float, ours: float) -> str:
    """Return a ratio as one reads it aloud: 12x, 0.8x, 1/136."""
    if not ours or not theirs:
        return ""
    return f"{number(theirs / ours)}x  " if theirs > ours / 10 else f"1/{number(ours / theirs)}  "


def _words(figure: str, unit: str) -> str:
    """Return what is drawn, and in what."""
    return unit if "/" in unit else f"{figure.replace('_', ' ')}, {unit}"


def _frame(part: Mapping[str, Any], what: str, height_in: float) -> tuple[Any, Any]:
    """Make an axis below the question and what is drawn of its answer, and above room for the caption."""
    question, shown = textwrap.fill(part["question"], 50), textwrap.fill(what, 64)
    above_in = 0.3 + 0.3 * (question.count("\n") + 1) + 0.3 * (shown.count("\n") + 1)
    below_in, total_in = 1.35, above_in + height_in + 1.35
    figure, axes = plt.subplots(figsize=(WIDTH_IN, total_in))
    figure.subplots_adjust(left=0.04, right=0.96, top=1 - above_in / total_in, bottom=below_in / total_in)
    figure.text(0.02, 1 - 0.12 / total_in, question, fontsize=LARGE, fontweight="bold", va="top")
    figure.text(0.02, 1 - (above_in - 0.08) / total_in, shown, fontsize=MIDDLE, color=FAINT, va="bottom")
    axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure, axes
