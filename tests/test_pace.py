"""How fast a job goes: chunks, throttle, speed."""

import pytest

from daemon.pace import Pace


def test_a_chunk_grows_by_doubling_until_it_takes_the_time_it_should() -> None:
    pace = Pace(target_s=0.25, most_keys=1000, chunk_keys=10)
    sizes = []
    for start in range(8):
        pace.took(pace.chunk_keys, start, start + pace.chunk_keys * 0.001)  # a millisecond a key
        sizes.append(pace.chunk_keys)
    assert sizes == pytest.approx([20, 40, 80, 160, 250, 250, 250, 250], abs=1)


def test_a_chunk_that_took_too_long_shrinks_at_once_to_one_key_at_least() -> None:
    pace = Pace(target_s=0.25, most_keys=1000, chunk_keys=400)
    pace.took(400, 0.0, 1.0)
    assert pace.chunk_keys == 100
    pace.took(100, 1.0, 1000.0)
    assert pace.chunk_keys == 1


def test_a_chunk_never_exceeds_what_the_topic_allows() -> None:
    pace = Pace(target_s=0.25, most_keys=150, chunk_keys=1000)
    assert pace.chunk_keys == 150
    pace.took(150, 0.0, 0.0)
    assert pace.chunk_keys == 150


@pytest.mark.parametrize(("rate", "chunk_keys"), [(50, 50), (0.5, 1), (5000, 100)])
def test_a_chunk_is_a_second_of_the_rate_at_most(rate: float, chunk_keys: int) -> None:
    assert Pace(target_s=0.25, most_keys=1000, rate_limit=rate).chunk_keys == chunk_keys


def test_the_throttle_keeps_to_the_rate_over_many_chunks() -> None:
    pace = Pace(target_s=0.25, most_keys=1000, rate_limit=100)
    now, done = 10.0, 0
    while done < 1000:
        now += pace.wait_s(now)
        key_count = pace.chunk_keys
        pace.took(key_count, now, now + 0.01)
        now, done = now + 0.01, done + key_count
    assert now + pace.wait_s(now) - 10.0 == pytest.approx(done / 100, rel=0.01)


def test_the_throttle_does_not_make_up_for_lost_time() -> None:
    pace = Pace(target_s=0.25, most_keys=1000, rate_limit=100)
    pace.took(100, 0.0, 60.0)  # a minute of somebody else's lock
    pace.took(100, 60.0, 60.1)
    assert pace.wait_s(60.1) == pytest.approx(0.9)


def test_the_speed_counts_waiting_but_no_pause() -> None:
    pace = Pace(target_s=0.25, most_keys=1000)
    pace.took(100, 0.0, 0.5)
    assert pace.keys_per_s == pytest.approx(200)
    pace.took(100, 3.0, 3.5)  # it yielded from 0.5 to 3.0
    assert pace.keys_per_s == pytest.approx(190 / 3.45)
    pace.rest()
    pace.took(100, 1000.0, 1000.5)
    assert pace.keys_per_s is not None
    assert pace.keys_per_s > 190 / 3.45
