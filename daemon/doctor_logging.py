"""What doctor looks at in the server's log: whether keys and texts of errors get there, as parameters or messages."""

from daemon.doctor_check import Check, Complaints, Patient, warning
from daemon.sql import statement

DOCTOR_LOGGING = statement("doctor_logging")
_NEVER, _NOTHING = "-1", "0"
_TALKATIVE = ("debug5", "debug4", "debug3", "debug2", "debug1", "info")


async def check_logging(patient: Patient) -> Complaints:
    """See that the server keeps parameters and keys out of its log."""
    said = {row["name"]: row["setting"] for row in await patient.connection.fetch(DOCTOR_LOGGING)}
    role = await patient.connection.fetchval("select quote_ident(current_user)")
    if said["log_parameter_max_length_on_error"] != _NOTHING:
        yield warning(
            "the server logs the parameters of statements that fail: keys, and texts of errors with row values",
            f"As a superuser: alter role {role} set log_parameter_max_length_on_error = 0;",
        )
    durations = {said["log_min_duration_statement"], said["log_min_duration_sample"]}
    logs_statements = said["log_statement"] in ("mod", "all") or durations != {_NEVER}
    if logs_statements and said["log_parameter_max_length"] != _NOTHING:
        yield warning(
            "the server logs statements with their parameters: keys, and texts of errors with row values",
            f"As a superuser: alter role {role} set log_parameter_max_length = 0;",
        )
    if said["log_min_messages"] in _TALKATIVE:
        yield warning(
            "the server logs what it tells us of every batch: keys",
            f"As a superuser: alter role {role} set log_min_messages = notice;",
        )


LOGGING_CHECKS = (Check("logging", check_logging, "the server logs no parameters of our statements, and no keys"),)
