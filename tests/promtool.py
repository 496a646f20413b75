"""Prometheus's own tool, which checks metrics and rules."""

import shutil
import subprocess

import pytest


def need_promtool() -> None:
    """Skip the test where it is missing."""
    if not shutil.which("promtool"):
        pytest.skip("needs promtool: apt install prometheus")


def promtool(*arguments: str, given: str = "") -> tuple[int, str]:
    """Run it; return its exit code and all that it said."""
    command = ["promtool", *arguments]
    ran = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr
