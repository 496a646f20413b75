"""Whose fault a SQLSTATE is."""

import asyncpg
import click
import pytest
from click.testing import CliRunner

from daemon.batch import CallFailed
from daemon.claim import Claim
from daemon.commands.base import Commands
from daemon.database import sqlstate_of
from daemon.errors import (
    Blame,
    ConfigurationError,
    DatabaseRefuses,
    DatabaseUnavailable,
    RecalcdError,
    SchemaMismatch,
    UsageError,
    blame,
)


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        (None, Blame.SERVER),  # the connection broke without a word
        ("08006", Blame.SERVER),
        ("25006", Blame.SERVER),  # read-only: the old primary after a failover
        ("25P03", Blame.SERVER),  # idle_in_transaction_session_timeout
        ("25P04", Blame.SERVER),  # transaction_timeout
        ("53100", Blame.SERVER),  # disk full
        ("53300", Blame.SERVER),  # too many connections
        ("57P01", Blame.SERVER),  # administrator's shutdown
        ("57P03", Blame.SERVER),  # starting up
        ("57P05", Blame.SERVER),  # idle session timeout
        ("58030", Blame.SERVER),  # I/O error
        ("40001", Blame.CONTENTION),
        ("40P01", Blame.CONTENTION),
        ("55006", Blame.CONTENTION),  # object in use
        ("55P03", Blame.CONTENTION),
        ("53200", Blame.SIZE),
        ("53400", Blame.SIZE),  # past temp_file_limit
        ("RC004", Blame.TOPIC),
        ("57014", Blame.KEYS),  # statement timeout
        ("22P02", Blame.KEYS),
        ("23505", Blame.KEYS),
        ("2D000", Blame.KEYS),  # the procedure commits
        ("25001", Blame.KEYS),
        ("42501", Blame.SCHEMA),  # inside the procedure; that it may not be called is RC004
        ("3F000", Blame.SCHEMA),
        ("42P01", Blame.SCHEMA),
        ("42703", Blame.SCHEMA),
        ("42883", Blame.SCHEMA),
        ("42601", Blame.KEYS),
        ("54001", Blame.KEYS),  # stack depth
        ("P0001", Blame.KEYS),
        ("RC001", Blame.KEYS),
        ("RC005", Blame.KEYS),
        ("XX000", Blame.KEYS),
    ],
)
def test_blame_of(sqlstate: str | None, expected: Blame) -> None:
    assert blame(sqlstate) is expected


def failed(error: BaseException) -> CallFailed:
    claim = Claim("t", ["k"], 1, None, None, [], None, 0, None, False, False)  # type: ignore[arg-type]  # no clock here
    return CallFailed(claim, error)


def from_server(sqlstate: str, severity: str) -> asyncpg.PostgresError:
    """Make an error of the fields that a server sends."""
    return asyncpg.PostgresError.new({"S": severity, "V": severity, "C": sqlstate, "M": "so it said"})


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02", "25P03", "25P04", "08006"])
def test_a_batch_vanished_when_its_backend_is_gone_with_a_word(sqlstate: str) -> None:
    assert failed(from_server(sqlstate, "FATAL")).vanished
    assert not failed(from_server(sqlstate, "ERROR")).vanished  # a procedure may raise any of them


def test_a_batch_vanished_when_its_backend_is_gone_without_a_word() -> None:
    assert failed(asyncpg.ConnectionDoesNotExistError("closed in the middle")).vanished
    assert failed(ConnectionResetError()).vanished
    assert not failed(from_server("57014", "ERROR")).vanished
    assert not failed(from_server("53100", "ERROR")).vanished


def test_what_asyncpg_makes_up_itself_has_no_sqlstate() -> None:
    assert sqlstate_of(asyncpg.RaiseError("no")) == "P0001"
    assert sqlstate_of(asyncpg.ConnectionDoesNotExistError("gone")) is None
    assert sqlstate_of(from_server("08003", "ERROR")) == "08003"
    assert sqlstate_of(asyncpg.InterfaceError("closed")) is None
    assert sqlstate_of(TimeoutError()) is None


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("closed in the middle"),
        asyncpg.InterfaceError("closed"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        ConnectionResetError("reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_command_whose_connection_is_lost_ends_with_a_sentence(error: Exception) -> None:
    @click.command()
    def fail() -> None:
        raise error

    group = Commands("recalcd", commands={"fail": fail})
    told = CliRunner().invoke(group, ["fail"])
    assert told.exit_code == 3
    assert told.stderr.startswith("recalcd: The connection to the database was lost: ")


def test_every_ending_of_a_command_has_its_exit_code() -> None:
    endings = [RecalcdError, UsageError, DatabaseUnavailable, SchemaMismatch, ConfigurationError, DatabaseRefuses]
    assert [each.exit_code for each in endings] == [1, 2, 3, 4, 78, 78]


def test_a_plan_that_ddl_outdated_is_no_keys_fault_and_an_unsupported_feature_is() -> None:
    assert failed(asyncpg.InvalidCachedStatementError("cached plan must not change result type")).blame is (
        Blame.CONTENTION
    )
    assert failed(asyncpg.FeatureNotSupportedError("not implemented")).blame is Blame.KEYS
