"""The arithmetic of `make soak`, whose verdict rests on it."""

import random

import pytest
from soak.figures import length_outside, slope, union


def staircase(per_hour: float, seed: int = 1, noise: float = 0.2, seconds: int = 600) -> list[tuple[float, float]]:
    """Make a sample a second of something that grows and jitters."""
    chance = random.Random(seed)
    return [(at, 47 + per_hour * at / 3600 + chance.gauss(0, noise)) for at in range(seconds)]


def test_a_leak_is_told_from_noise() -> None:
    leaking = slope(staircase(per_hour=30))
    assert leaking
    assert leaking.per_hour == pytest.approx(30, abs=3 * leaking.stderr_per_hour)
    assert leaking.growth == pytest.approx(30 * 590 / 3600, rel=0.1)
    assert not leaking.is_noise(floor=1)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_leak(seed: int) -> None:
    steady = slope(staircase(per_hour=0, seed=seed))
    assert steady
    assert steady.is_noise(floor=1)
    assert steady.is_noise(floor=0)


def test_what_is_certain_but_small_is_no_leak_and_what_shrinks_is_none() -> None:
    small, shrinking = slope(staircase(per_hour=3, noise=0.01)), slope(staircase(per_hour=-90))
    assert small
    assert shrinking
    assert not small.is_noise(floor=0)
    assert small.is_noise(floor=1)
    assert shrinking.is_noise(floor=0)


def test_a_series_of_half_a_minute_tells_nothing() -> None:
    assert slope(staircase(per_hour=1000, seconds=30)) is None


def test_windows_that_overlap_are_one_and_what_lies_in_them_is_excused() -> None:
    windows = union([(10, 20), (3, 5), (15, 30), (30, 31)])
    assert windows == [(3, 5), (10, 31)]
    assert length_outside((0, 40), windows) == 40 - 2 - 21
    assert length_outside((4, 12), windows) == 5
    assert length_outside((11, 12), windows) == 0
    assert length_outside((32, 34), windows) == 2
