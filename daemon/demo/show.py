"""The account of a demo, for a person: nothing wider than 80 columns but what is there to be pasted. Pure."""

from collections.abc import Iterator
from typing import Any

from daemon.demo.account import Account, Grid, Recalculated, Report, Wrote
from daemon.demo.freshness import Freshness
from daemon.demo.stage import Reach
from daemon.render import cell, columns

TITLE_WIDTH = 11
ID_WIDTH = 8
TOLD = {
    "average": "average",
    "activity_average": "  of activities",
    "assessment_average": "  of assessments",
    "feedback_count": "pieces of feedback",
    "assignment_count": "assignments set",
    "latest_score": "latest score",
    "latest_given_at": "  given at",
    "calculated_at": "calculated at",
    "is_fresh": "fresh",
}


def account_text(account: Account) -> str:
    """Return what `recalcd demo` prints."""
    parts = [
        columns([*_wrote(account.wrote), *_recalculated(account.recalculated)]),
        f"PUPIL {account.after['student_id']}, a busy one\n{comparison(account.before, account.after)}",
        _group(account.group),
        _verdict(account),
    ]
    if account.reach:
        parts.append(_reach(account.reach))
    return "\n\n".join(parts)


def _wrote(wrote: Wrote) -> Iterator[tuple[str, str]]:
    aside = [f"{wrote.rate_per_s:,.0f} a second"]
    if wrote.unchanged_count:
        aside.append(f"{wrote.unchanged_count:,} changed nothing")
    if wrote.failed:
        aside.append(f"{len(wrote.failed):,} FAILED")
    yield "WRITES", f"{wrote.write_count:,} in {wrote.seconds:.1f} s: {', '.join(aside)}"


def _recalculated(done: Recalculated) -> Iterator[tuple[str, str]]:
    gathered = f"{done.events_per_recalculation or 0:.2f} events per recalculation"
    yield "EVENTS", f"{done.event_count:,}"
    yield (
        "RECALCULATIONS",
        f"{done.recalculation_count:,} in {done.batch_count:,} batches: {gathered}",
    )
    yield "FRESHNESS", _freshness(done.freshness_ms) if done.freshness_ms else "-"
    yield "", "from the commit of the write to the commit of the recalculation"


def _freshness(found: Freshness) -> str:
    return f"p50 {found.p50_ms:.1f} ms, p95 {found.p95_ms:.1f} ms, p99 {found.p99_ms:.1f} ms, max {found.max_ms:.1f} ms"


def comparison(before: Report, after: Report) -> str:
    """Set two reports side by side; a star is where they differ."""
    rows = [
        (label, was, now, "*" if was != now else "")
        for (label, was), (_, now) in zip(_lines(before, after), _lines(after, before), strict=True)
    ]
    return columns([("", "BEFORE", "AFTER", ""), *rows], right=(1, 2))


def _lines(report: Report, other: Report) -> Iterator[tuple[str, str]]:
    for name, label in TOLD.items():
        yield f"  {label}", cell(report[name])
    for subject in sorted({*report["subjects"], *other["subjects"]}):
        yield f"  {subject}", _standing(report["subjects"].get(subject))


def _standing(subject: Any) -> str:
    if subject is None or subject["average"] is None:
        return "-"
    return _mark(subject["average"], subject["working_level"])


def _mark(average: float | None, working_level: int | None) -> str:
    if average is None:
        return "-"
    return f"{average:.2f} L{'-' if working_level is None else working_level}"


def _group(group: Grid) -> str:
    header = ("", "AVERAGE", *(title[:TITLE_WIDTH].upper() for title in group.units))
    rows = [
        (
            f"  {key[:ID_WIDTH]}",
            _average(average),
            *(_mark(each.average, each.working_level) for each in group.cells[key]),
        )
        for key, average in group.pupils.items()
    ]
    shown = f"{len(rows)} of {group.pupil_count:,} pupils, {len(group.units)} of {group.unit_count:,} units"
    title = f"GROUP {group.name} ({group.group_id})"
    caption = f"  average and working level; {shown}"
    return "\n".join([title, columns([header, *rows], right=range(1, len(header))), caption])


def _average(average: float | None) -> str:
    return "-" if average is None else f"{average:.2f}"


def _verdict(account: Account) -> str:
    verdict = account.verdict
    told = (
        f"VERIFY  {len(verdict.drifted):,} drift: {verdict.checked_count:,} of {account.student_count:,} pupils checked"
    )
    if not account.problems:
        return told
    return "\n".join([told, "", "NOT AS IT SHOULD BE", *(f"  {problem}" for problem in account.problems)])


def _reach(reach: Reach) -> str:
    lines = {
        "dsn": reach.dsn,
        "psql": reach.psql,
        "status": reach.status,
        "log": reach.log,
        "stop both, and remove them": reach.stop,
    }
    return "\n".join(["STILL RUNNING", *(f"  {label}\n    {line}" for label, line in lines.items())])
