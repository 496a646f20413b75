"""Draw what was measured, for a telephone: few series, large letters, the ratio first."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

README = "README.md"
HOW_TO_INSTALL = "Plots need matplotlib: pip install 'recalcd[bench]', or in a checkout: pip install -e '.[bench]'."

FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "saturation": (r"(?P<case>(?:uniform|Zipf), [\d,]+), (?P<side>.*)", ("events_per_s",)),
    "freshness": (r"(?P<case>[\d,]+/s|from idle), (?P<side>.*)", ("p50", "p99")),
    "writers": (r"(?P<case>(?:as shipped|1 ms commits), \d+ client\(s\)), (?P<side>.*)", ("speed",)),
    "baddays": (r"(?P<case>[^:]+): (?P<side>.*)", ("events_per_s", "fresh_p99")),
    "reads": (r"(?P<case>)(?P<side>.*): added up / cached", ("ratio",)),
}
"""How a part's rows fall into pictures, and the figures to draw; of other parts all rows are in one picture."""

Picture = tuple[str, str, dict[str, dict[str, Any]]]
"""The case, the figure's name, and the figure of each side."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: Sequence[Path]) -> None:
    """Draw results anew, each beside its file."""
    require_matplotlib()
    for file in files:
        draw_all(json.loads(file.read_text("utf-8")), file.parent)
    for folder in {file.parent for file in files}:
        write_readme(folder)


def require_matplotlib() -> None:
    """Raise click.UsageError unless the extra is installed."""
    if find_spec("matplotlib") is None:
        raise click.UsageError(HOW_TO_INSTALL)


def keep(report: Mapping[str, Any], folder: Path) -> None:
    """Write each part's measurements to a file of its own, and draw them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in report["parts"]:
        alone = dict(report) | {"parts": [part]}
        (folder / f"{part['name']}.json").write_text(json.dumps(alone, indent=2) + "\n", "utf-8")
    draw_all(report, folder)
    write_readme(folder)


def draw_all(report: Mapping[str, Any], folder: Path) -> None:
    """Draw the pictures of all parts."""
    from benchmarks import canvas  # noqa: PLC0415  # the only module that imports matplotlib

    for part in report["parts"]:
        caption = f"{report['command']}\n{machine_of(report)}"
        for name, picture in pictures_of(part).items():
            canvas.draw(folder / f"{name}.png", part, picture, caption)


def machine_of(report: Mapping[str, Any]) -> str:
    """Put the machine into a line."""
    facts = report["machine"]
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory']}, PostgreSQL {facts['postgres']}"


def pictures_of(part: Mapping[str, Any]) -> dict[str, Picture]:
    """Deal the rows of a part out to pictures, by the stem of the file."""
    if part["name"].startswith("growth-"):
        return {
            f"{part['name']}-{slug(figure)}": (part["how"], figure, sides) for figure, sides in _grown(part).items()
        }
    pattern, wanted = FIGURES.get(part["name"], ("(?P<case>)(?P<side>.*)", ()))
    pictures: dict[str, Picture] = {}
    for row in part["rows"]:
        found = re.fullmatch(pattern, row["name"])
        for figure in wanted or tuple(row["figures"])[:1]:
            if found and figure in row["figures"]:
                stem = slug(f"{part['name']} {found['case']} {figure}")
                pictures.setdefault(stem, (found["case"], figure, {}))[2][found["side"]] = row["figures"][figure]
    return pictures


def _grown(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each figure's course along the axis, whose points are the rows that are named like numbers."""
    grown: dict[str, dict[str, Any]] = {}
    for row in part["rows"]:
        if re.fullmatch(r"[\d,]+", row["name"]):
            for figure, series in row["figures"].items():
                if series["unit"] and figure != "seconds":
                    grown.setdefault(figure, {})[row["name"]] = series
    return grown


def slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace(",", "")).strip("-")


def write_readme(folder: Path) -> None:
    """Say how each picture in a folder came about, and whether the targets were met."""
    reports = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    lines = ["# What was measured", "", "Written by `python -m benchmarks plot`, as the pictures are.", ""]
    for report in reports:
        for part in report["parts"]:
            lines += _section(report, part)
    (folder / README).write_text("\n".join(lines).rstrip() + "\n", "utf-8")


def _section(report: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    facts = [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines = [f"## {part['name']}", "", part["question"], part["how"], "", f"    {report['command']}", "", *facts, ""]
    if part["verdicts"]:
        lines += ["| target | wanted | median | p10 to p90 | |", "| --- | --- | --- | --- | --- |"]
        lines += [_verdict(each) for each in part["verdicts"]] + [""]
    return lines + [line for stem in pictures_of(part) for line in (f"![{stem}]({stem}.png)", "")]


def _verdict(verdict: Mapping[str, Any]) -> str:
    figure = verdict["figure"]
    spread = f"{number(figure['low'])} to {number(figure['high'])}"
    outcome = "met" if verdict["is_met"] else "**missed**"
    wanted = f"{verdict['target']} {figure['unit']}"
    return f"| {verdict['what']} | {wanted} | {number(figure['median'])} | {spread} | {outcome} |"


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
