"""`recalcd doctor`."""

from dataclasses import asdict
from typing import Any

import click

from daemon.commands.base import asynchronous, json_option


@click.command(epilog="Example: recalcd doctor")
@json_option
@click.pass_obj
@asynchronous
async def doctor(command_line: dict[str, Any], *, as_json: bool) -> None:
    """Examine a deployment, and name the remedy for everything that makes it unsafe or slow.

    Changes nothing: it tries each topic's procedure on one key, and takes that back.
    Run it as the daemon's role, with the daemon's settings.

    Exit: 0 no error among the findings, 1 errors, 3 no database.
    """
    from daemon import render, render_doctor, telemetry
    from daemon.database import connection
    from daemon.doctor import examine
    from daemon.doctor_check import Patient
    from daemon.settings import load

    settings = load(**command_line)
    telemetry.configure(settings)
    findings = []
    async with connection(settings, application_name="recalcd doctor") as opened:
        async for finding in examine(Patient(opened, settings)):
            findings.append(finding)
            if not as_json:
                click.echo(render_doctor.finding_text(finding))
    if as_json:
        click.echo(render.as_json([asdict(each) for each in findings]))
    else:
        click.echo(render_doctor.summary_text(findings))
    if any(each.level == "error" for each in findings):
        click.get_current_context().exit(1)
