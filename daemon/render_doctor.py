"""How the findings of `recalcd doctor` look on a terminal: as they are made, one by one. Pure."""

import textwrap
from collections.abc import Sequence

from daemon.doctor_check import Finding
from daemon.render import counted

WIDTH = 100
_INDENT = " " * 24


def finding_text(finding: Finding) -> str:
    """Return a finding: how grave, which check, what was found; and below it, what to do."""
    head = f"{finding.level:<8}{finding.check:<16}{finding.sentence}"
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)
    if finding.remedy:
        lines += textwrap.wrap(
            finding.remedy,
            WIDTH,
            initial_indent=f"{_INDENT}-> ",
            subsequent_indent=f"{_INDENT}   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def summary_text(findings: Sequence[Finding]) -> str:
    """Return the last line."""
    levels = [each.level for each in findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    if not errors + warnings:
        return "all is well"
    return f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
