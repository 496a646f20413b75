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
OURS, THEIRS, INK = "#0b6e4f", "#b9c0c7", "#20262b"
LARGE, MIDDLE, SMALL = 17, 14, 9.5
MOST_BARS = 12
WIDE_RANGE = 30
"""Largest over smallest, from which on a logarithm shows more."""


def draw(file: Path, part: Mapping[str, Any], picture: Picture, caption: str) -> None:
    """Draw one picture: bars for sides, a line for something that grows."""
    plt.rcParams.update({"font.size": MIDDLE, "text.color": INK, "axes.edgecolor": THEIRS, "font.family": "sans-serif"})
    grows = part["name"].startswith("growth-")
    figure = _line(part, picture) if grows else _bars(part, picture)
    figure.text(0.02, 0.012, textwrap.fill(caption, 105), fontsize=SMALL, color="#5b656e", va="bottom")
    figure.savefig(file, dpi=DPI, facecolor="white")
    plt.close(figure)


def _bars(part: Mapping[str, Any], picture: Picture) -> Any:
    case, what, sides = picture
    ranked = sorted(sides.items(), key=lambda item: item[1]["median"], reverse=True)[:MOST_BARS]
    ours = next((name for name, _ in ranked if name.startswith(("recalcd", "cached"))), ranked[0][0])
    figure, axes = _frame(f"{part['name']}{': ' if case else ''}{case}", 1.9 + 0.85 * len(ranked))
    medians = [series["median"] for _, series in ranked]
    if max(medians) > WIDE_RANGE * max(min(medians), 1e-9) and min(medians) > 0:
        axes.set_xscale("log")
    for place, (name, series) in enumerate(ranked):
        axes.barh(place, series["median"], height=0.42, color=OURS if name == ours else THEIRS)
        axes.plot([series["low"], series["high"]], [place, place], color=INK, linewidth=2)
        ratio = "" if name == ours else _ratio(series["median"], sides[ours]["median"])
        label = f"{ratio}{name}: {number(series['median'])} {series['unit']}"
        axes.text(0.0, place - 0.33, label, fontsize=MIDDLE, va="bottom", transform=axes.get_yaxis_transform())
    axes.invert_yaxis()
    axes.set_yticks([])
    axes.set_xlabel(f"{what.replace('_', ' ')}, {ranked[0][1]['unit']}; line: p10 to p90", fontsize=SMALL + 2)
    return figure


def _ratio(median: float, ours: float) -> str:
    return f"{number(median / ours)}x  " if ours else ""


def _line(part: Mapping[str, Any], picture: Picture) -> Any:
    _, what, sides = picture
    sizes = [int(name.replace(",", "")) for name in sides]
    medians = [series["median"] for series in sides.values()]
    figure, axes = _frame(f"{part['question']}\n{what.replace('_', ' ')}", 6.6)
    axes.fill_between(sizes, [s["low"] for s in sides.values()], [s["high"] for s in sides.values()], color=THEIRS)
    axes.plot(sizes, medians, color=OURS, linewidth=3, marker="o", markersize=9)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.25 * max(series["high"] for series in sides.values()))
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    axes.set_xticks(sizes, list(sides), fontsize=SMALL + 2)
    axes.minorticks_off()
    for size, median in zip(sizes, medians, strict=True):
        ratio = "" if size == sizes[0] else f"{number(median / medians[0])}x\n"
        axes.annotate(f"{ratio}{number(median)}", (size, median), (0, 12), textcoords="offset points", ha="center")
    axes.set_ylabel(next(iter(sides.values()))["unit"])
    return figure


def _frame(title: str, height_in: float) -> tuple[Any, Any]:
    lines = [wrapped for line in title.split("\n") for wrapped in textwrap.wrap(line, 52)]
    height_in += 0.3 * len(lines)
    figure, axes = plt.subplots(figsize=(WIDTH_IN, height_in))
    figure.subplots_adjust(left=0.04 if "\n" not in title else 0.13, right=0.96)
    figure.subplots_adjust(top=1 - (0.2 + 0.3 * len(lines)) / height_in, bottom=1.25 / height_in)
    figure.text(0.02, 1 - 0.12 / height_in, "\n".join(lines), fontsize=LARGE, fontweight="bold", va="top")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure, axes
