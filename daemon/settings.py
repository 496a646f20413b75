"""The settings, and everything else that comes from the environment: no other module reads it.

Of the places a value may come from, the nearer wins: command line, environment, RECALCD_ENV_FILE, systemd credential
(a file named like the field, `database_url`, in $CREDENTIALS_DIRECTORY), default. An empty variable counts as unset.
"""

import difflib
import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from daemon.address import check_uri, parse_address
from daemon.errors import ConfigurationError
from daemon.extras import need_extra
from daemon.redaction import redact

PREFIX = "RECALCD_"


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _seconds(default: float, description: str, *, above: float = 0.0, up_to: float = 3600.0) -> Any:
    return Field(default, gt=above, le=up_to, allow_inf_nan=False, description=description)


class Settings(BaseSettings):
    """RECALCD_* variables, and the bare TELEM_ENABLED and TELEM_PATH. Use load(), whose errors are for people."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        env_file_encoding="utf-8",
        extra="ignore",  # load() refuses misspelt variables itself, with the nearest name
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    database_url: SecretStr | None = Field(
        None, description="libpq URI of the database, direct or session-pooled; never logged"
    )
    env_file: Path | None = Field(None, description="file of NAME=value lines, read again on SIGHUP")

    workers: int = Field(2, ge=1, le=64, description="claim connections")
    batch_target_s: float = _seconds(0.25, "time one batch should take; sizes the next", up_to=60)
    stop_grace_s: float = _seconds(20, "time to finish the batch in hand when told to stop")

    wake: Annotated[Literal["doorbell", "poll", "always"], BeforeValidator(_lower)] = Field(
        "doorbell", description="what wakes the daemon: armed doorbell, polling only, or a NOTIFY for every write"
    )
    poll_interval_s: float = _seconds(5, "poll behind the doorbell, jittered: the most that a lost NOTIFY costs")
    poll_only_interval_s: float = _seconds(0.1, "poll when no bell can ring")
    linger_s: float = Field(
        0.5,
        ge=0,
        le=60,
        allow_inf_nan=False,
        description="time to keep polling after the last work; 0: none",
    )
    linger_poll_s: float = _seconds(0.005, "poll while lingering; while writers ring, ever less often", up_to=60)

    heartbeat_s: float = _seconds(15, "time after which a silent session is checked")
    heartbeat_timeout_s: float = _seconds(5, "time one such check may take; then the session is replaced")
    connect_timeout_s: float = _seconds(10, "time one attempt to connect may take")
    retry_max_s: float = _seconds(30, "longest wait between two attempts while the database is away, or a topic broken")

    history_days: int = Field(3, ge=0, le=3650, description="days that outbox.batch keeps; 0: no history")

    verify_keys_per_minute: int = Field(
        0, ge=0, le=30_000, description="keys that the daemon verifies in the background; 0: none"
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", description="least important events to log"
    )
    log_format: Annotated[Literal["auto", "json", "text"], BeforeValidator(_lower)] = Field(
        "auto", description="form of the log; auto: text on a terminal, else JSON"
    )

    telem_enabled: bool = Field(
        default=False, validation_alias="TELEM_ENABLED", description="write one line per span to the telemetry file"
    )
    telem_path: str = Field(
        "",
        validation_alias="TELEM_PATH",
        description="routes to write, as comma-separated tags, each a prefix: recalculate.reports,replay; empty: all",
    )
    telem_dir: Path = Field(Path("logs"), description="folder of the telemetry files")

    metrics_listen: str = Field(
        "", description="where Prometheus may scrape, as address:port, or a port of the loopback; empty: nowhere"
    )
    otel_enabled: bool = Field(
        default=False, description="send spans to OpenTelemetry, as the OTEL_* variables of the environment say"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # replaced: it would take any field from a file
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the credential behind everything but the defaults."""
        return init_settings, env_settings, dotenv_settings, InitSettingsSource(settings_cls, _credential())

    @property
    def telem_routes(self) -> tuple[str, ...]:
        """The tags of telem_path; () means every route."""
        return tuple(tag for part in self.telem_path.split(",") if (tag := part.strip().rstrip(".")))

    @field_validator("database_url")
    @classmethod
    def _database_url_is_a_uri(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            check_uri(value.get_secret_value())
        return value

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Where to listen for Prometheus; None: nowhere. A port alone is the loopback's: nobody logs in there."""
        return parse_address(self.metrics_listen) if self.metrics_listen else None

    @field_validator("metrics_listen")
    @classmethod
    def _metrics_listen_is_an_address(cls, value: str) -> str:
        if value:
            parse_address(value)
            need_extra("metrics", "prometheus_client")
        return value

    @field_validator("otel_enabled")
    @classmethod
    def _otel_is_installed(cls, value: bool) -> bool:
        if value:
            need_extra("otel", "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
        return value

    @field_validator("telem_path")
    @classmethod
    def _telem_path_has_no_patterns(cls, value: str) -> str:
        if "*" in value:
            message = "must be tags without *: each tag already matches everything below it"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Check what no single setting can tell; each sentence says why."""
        if self.linger_s and self.linger_poll_s > self.linger_s:
            _refuse("linger_poll_s", "linger_s", "or the lingering ends before its first look (0 turns lingering off)")
        if self.poll_only_interval_s > self.poll_interval_s:
            _refuse("poll_only_interval_s", "poll_interval_s", "since with no bell to ring, that poll is all there is")
        if self.heartbeat_timeout_s > self.heartbeat_s:
            _refuse("heartbeat_timeout_s", "heartbeat_s", "or one check is still waiting when the next is due")
        if self.batch_target_s > self.stop_grace_s:
            _refuse("batch_target_s", "stop_grace_s", "or stopping rolls back batches that were on time")
        return self


def _refuse(smaller: str, larger: str, reason: str) -> None:
    message = f"{variable(smaller)} must not exceed {variable(larger)}, {reason}."
    raise ValueError(message)


def variable(field: str) -> str:
    """Return the variable that sets a field: workers → RECALCD_WORKERS."""
    return _alias(field) or PREFIX + field.upper()


def _alias(field: str) -> str | None:
    """Return the bare name of a variable without our prefix; pydantic looks at it before the field's own."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else None


def load(**command_line: object) -> Settings:
    """Read the settings; None on the command line means not given.

    Raises ConfigurationError for a misspelt variable, an unreadable file, or a value that can't be.
    """
    given = {_alias(field) or field: value for field, value in command_line.items() if value is not None}
    env_file = _env_file()
    _refuse_misspelt(os.environ, "the environment")
    _refuse_misspelt(_variables_of(env_file), str(env_file))
    try:
        return Settings(_env_file=env_file, **given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        raise ConfigurationError(_sentences(error)) from None  # the cause would show the values


def _env_file() -> Path | None:
    name = os.environ.get(variable("env_file"))
    return Path(name) if name else None


def _variables_of(env_file: Path | None) -> Mapping[str, str | None]:
    """Return what the file sets; {} without a file."""
    return {} if env_file is None else dotenv_values(stream=io.StringIO(_text_of(env_file)))


def _credential() -> dict[str, str]:
    """Return what systemd's LoadCredential=database_url: hands us; {} without."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, "database_url") if folder else None
    return {"database_url": _text_of(path).strip()} if path and path.exists() else {}


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f"The settings in {path} can't be read: {reason}."
        raise ConfigurationError(message) from None  # the bytes of a UnicodeDecodeError may be a secret


def _refuse_misspelt(names: Iterable[str], place: str) -> None:
    """Refuse RECALCD_* and TELEM_* names that set nothing; pydantic-settings would pass over them in silence."""
    known = {variable(field) for field in Settings.model_fields}
    ours = {name for name in names if name.upper().startswith((PREFIX, "TELEM_"))}
    unknown = sorted(name for name in ours if name.upper() not in known)
    if unknown:
        hints = ", ".join(f"{name} (did you mean {_nearest(name, known)}?)" for name in unknown)
        message = f"Unknown in {place}: {hints}. Correct or remove it."
        raise ConfigurationError(message)


def _nearest(name: str, known: Iterable[str]) -> str:
    """Compare without the prefix, so that RECALCD_TELEM_ENABLED leads to TELEM_ENABLED."""
    by_stem = {each.removeprefix(PREFIX): each for each in known}
    stem = name.upper().removeprefix(PREFIX)
    return by_stem[difflib.get_close_matches(stem, by_stem, n=1, cutoff=0.0)[0]]


def _sentences(error: ValidationError) -> str:
    return " ".join(_sentence(each) for each in error.errors(include_url=False))


def _sentence(error: ErrorDetails) -> str:
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    if not error["loc"]:  # a rule between two settings: the whole sentence
        return reason
    field = _field(str(error["loc"][0]))
    value = "" if _is_secret(field) else f" is {redact(str(error['input']))!r}, but"
    return (
        f"{variable(field)}{value} {reason or 'must be ' + rule(field)} ({Settings.model_fields[field].description})."
    )


def _field(name: str) -> str:
    """Return the field that pydantic means, be it by name or by alias."""
    return name if name in Settings.model_fields else name.lower()


def _is_secret(field: str) -> bool:
    return field == "database_url"


def rule(field: str) -> str:
    """Say in words what a field may be: 'a whole number from 1 to 64'."""
    schema = Settings.model_json_schema(by_alias=False)["properties"][field]
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    match schema.get("type"):
        case "integer":
            return f"a whole number from {schema['minimum']} to {schema['maximum']}"
        case "number":
            lowest = f"from {schema['minimum']:g} to" if "minimum" in schema else "above 0, up to"
            return f"a number {lowest} {schema['maximum']:g}"
        case "boolean":
            return "true or false"
    return "a path" if field in {"env_file", "telem_dir"} else "text"


Origin = Literal["command line", "environment", "file", "credential", "default"]


@dataclass(frozen=True)
class Described:
    """One line of `recalcd config`."""

    variable: str
    value: str | int | float | bool | None
    origin: Origin
    rule: str
    description: str


def describe(settings: Settings, command_line: Collection[str] = ()) -> list[Described]:
    """Tell every setting's value, without secrets, and where it came from.

    command_line names the fields that were given there.
    """
    return [
        Described(
            variable(field),
            _shown(getattr(settings, field)),
            _origin(settings, field, command_line),
            rule(field),
            info.description or "",
        )
        for field, info in Settings.model_fields.items()
    ]


def as_table(described: Sequence[Described]) -> str:
    """Lay the lines out for a terminal: name=value, where from, what for."""
    rows = [
        (f"{each.variable}={_spelt(each.value)}", each.origin, f"{each.description} ({each.rule})")
        for each in described
    ]
    name_width, origin_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:{name_width}}  {origin:{origin_width}}  {meaning}" for name, origin, meaning in rows)


def _spelt(value: str | float | None) -> str:
    """Spell a value as the variable takes it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return str(value)


def _shown(value: object) -> str | int | float | bool | None:
    if isinstance(value, SecretStr):
        return redact(value.get_secret_value())
    return value if isinstance(value, int | float | bool | None) else str(value)


def _origin(settings: Settings, field: str, command_line: Collection[str]) -> Origin:
    def sets(variables: Mapping[str, str | None]) -> bool:
        return any(name.upper() == variable(field) and value for name, value in variables.items())

    if field in command_line:
        return "command line"
    if sets(os.environ):
        return "environment"
    if sets(_variables_of(settings.env_file)):
        return "file"
    return "credential" if field in settings.model_fields_set else "default"


@dataclass(frozen=True)
class Supervisor:
    """What systemd told this process; nothing when it is not the supervisor."""

    notify_socket: str | None
    watchdog_s: float | None


def supervisor() -> Supervisor:
    """Read NOTIFY_SOCKET and WATCHDOG_USEC; the watchdog may be meant for another process than this one."""
    pid = os.environ.get("WATCHDOG_PID")
    usec = os.environ.get("WATCHDOG_USEC", "")
    ours = usec.isdigit() and (pid is None or pid == str(os.getpid()))
    return Supervisor(os.environ.get("NOTIFY_SOCKET") or None, int(usec) / 1e6 if ours and int(usec) else None)


def no_color() -> bool:
    """Tell whether the user asks every program for plain text: https://no-color.org."""
    return bool(os.environ.get("NO_COLOR"))
