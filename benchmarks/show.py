"""Print a report: ratios first, then what was measured."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Part, Report, Row, Series, Verdict


def show(report: Report, console: Console) -> None:
    """Print a report."""
    table = Table("fact", "value", title="The machine", title_justify="left")
    for name, value in report.machine.items():
        table.add_row(name, value)
    console.print(table)
    for part in report.parts:
        show_part(part, console)


def show_part(part: Part, console: Console) -> None:
    """Print one benchmark."""
    console.print(f"\n[bold]{part.name}[/]: {part.question}\n{part.how}", highlight=False)
    if part.verdicts:
        console.print(_verdicts(part.verdicts))
    console.print(_measurements(part.rows))


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    table = Table("target", "wanted", "median", "p10-p90", "")
    for each in verdicts:
        outcome = "[green]met[/]" if each.is_met else "[red]missed[/]"
        wanted = f"{each.sense} {_number(each.target)} {each.figure.unit}"
        table.add_row(each.what, wanted, _number(each.figure.median), _spread(each.figure), outcome)
    return table


def _measurements(rows: Sequence[Row]) -> Table:
    table = Table("side", "figure", "median", "p10-p90", "p99", "unit", "n")
    for row in rows:
        for position, (name, series) in enumerate(row.figures.items()):
            p99 = _number(series.percentile(99)) if len(series.values) >= 20 else ""
            cells = (_number(series.median), _spread(series), p99, series.unit, str(len(series.values)))
            table.add_row("" if position else row.name, name, *cells)
        table.add_section()
    return table


def _spread(series: Series) -> str:
    return f"{_number(series.low)}-{_number(series.high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
