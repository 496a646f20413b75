"""What a daemon remembers of its topics between batches. Times are made up; nothing here waits."""

import pytest

from daemon.hints import LEAST_KEYS, MOST_KEYS, SWEEP_S, TRAIL_S, Hints

T = "t"


@pytest.fixture
def hints() -> Hints:
    """Return hints that have just swept, at 0."""
    hints = Hints(batch_target_s=1.0)
    hints.took(T, 1, 0.5, is_full=False)  # makes the topic known
    assert hints.next_sweep(0) == T
    return hints


def above(hints: Hints, now: float) -> object:
    return hints.for_claim(now, sweep=hints.next_sweep(now))[T]["above"]


def size(hints: Hints) -> object:
    return hints.for_claim(0)[T]["keys"]


def test_of_unknown_topics_there_are_no_hints_but_the_most_keys_of_any() -> None:
    assert Hints(1.0).for_claim(0) == {"": {"keys": MOST_KEYS}}


def test_the_mark_trails_the_claims(hints: Hints) -> None:
    hints.claimed(T, 100, now=0)
    hints.claimed(T, 200, now=1)
    assert above(hints, TRAIL_S - 0.1) == 0
    assert above(hints, TRAIL_S) == 100
    assert above(hints, TRAIL_S + 1) == 200


def test_the_mark_never_goes_back(hints: Hints) -> None:
    hints.claimed(T, 200, now=0)
    hints.claimed(T, 100, now=1)
    assert above(hints, TRAIL_S + 1) == 200


def test_a_claim_without_a_head_moves_no_mark(hints: Hints) -> None:
    hints.claimed(T, None, now=0)
    assert above(hints, TRAIL_S) == 0


def test_when_a_claim_finds_nothing_the_next_one_sweeps_if_it_is_time(hints: Hints) -> None:
    hints.claimed(T, 100, now=0)
    assert not hints.found_nothing(SWEEP_S - 0.1)
    assert above(hints, SWEEP_S - 0.1) == 100
    assert hints.found_nothing(SWEEP_S)
    assert above(hints, SWEEP_S) == 0
    assert not hints.found_nothing(SWEEP_S)
    assert above(hints, SWEEP_S) == 100


def test_new_events_go_before_a_sweep_but_not_for_ever(hints: Hints) -> None:
    hints.claimed(T, 100, now=0)
    assert above(hints, 2 * SWEEP_S - 0.1) == 100
    assert above(hints, 2 * SWEEP_S) == 0
    assert above(hints, 2 * SWEEP_S) == 100


def test_the_next_claim_sweeps_when_told_to(hints: Hints) -> None:
    hints.claimed(T, 100, now=0)
    hints.sweep()
    assert above(hints, TRAIL_S) == 0
    assert above(hints, TRAIL_S) == 100


def test_forgotten_marks_start_again(hints: Hints) -> None:
    hints.claimed(T, 100, now=0)
    assert above(hints, TRAIL_S) == 100
    hints.claimed(T, 200, now=TRAIL_S)
    hints.forget_marks()
    assert above(hints, SWEEP_S - 0.1) == 0
    hints.claimed(T, 150, now=SWEEP_S - 0.1)
    above(hints, SWEEP_S)
    assert above(hints, SWEEP_S + TRAIL_S) == 150


def test_a_slow_batch_shrinks_the_next_in_proportion(hints: Hints) -> None:
    assert size(hints) == MOST_KEYS
    hints.took(T, 500, seconds=4.0, is_full=True)
    assert size(hints) == 125
    hints.took(T, 32, seconds=1000, is_full=False)
    assert size(hints) == LEAST_KEYS  # slower still is the server's doing, not the keys'


def test_a_quick_full_batch_doubles_the_next_up_to_the_most(hints: Hints) -> None:
    hints.halve(T, 500)
    for expected in (500, 1000, MOST_KEYS, MOST_KEYS):
        hints.took(T, 7, seconds=0.1, is_full=True)  # events of seven keys filled the head
        assert size(hints) == expected


def test_a_full_batch_in_time_grows_the_next_nearly_up_to_the_target(hints: Hints) -> None:
    hints.halve(T, 500)
    hints.took(T, 250, seconds=0.6, is_full=True)
    assert size(hints) == 375


def test_a_batch_of_about_the_target_or_not_full_leaves_the_size(hints: Hints) -> None:
    hints.halve(T, 500)
    for seconds in (0.9, 0.95, 1.0):
        hints.took(T, 250, seconds=seconds, is_full=True)
    hints.took(T, 250, seconds=0.1, is_full=False)
    assert size(hints) == 250


def test_too_much_for_the_server_is_halved_down_to_one(hints: Hints) -> None:
    sizes = []
    key_count = 10
    for _ in range(5):
        hints.halve(T, key_count)
        sizes.append(key_count := int(str(size(hints))))
    assert sizes == [5, 2, 1, 1, 1]


def test_when_the_server_can_not_bear_the_locks_all_topics_ask_for_less_until_it_can_again(hints: Hints) -> None:
    for _ in range(12):
        hints.halve_all()
    assert hints.for_claim(0)[""] == {"keys": 1}
    hints.took(T, 1, seconds=0.1, is_full=True)
    assert hints.for_claim(0)[""] == {"keys": 2}
    hints.took(T, 2, seconds=0.1, is_full=False)
    assert hints.for_claim(0)[""] == {"keys": 2}


def test_a_topic_is_left_alone_until_its_time(hints: Hints) -> None:
    hints.skip(T, until=30)
    assert hints.for_claim(29)[T]["skip"]
    assert hints.skipped(29) == [T]
    assert not hints.for_claim(30)[T]["skip"]
    assert hints.skipped(30) == []


def test_each_topic_is_swept_in_its_turn_alone_and_none_twice(hints: Hints) -> None:
    for topic in ("slow", "u"):
        hints.claimed(topic, 100, now=0)
        hints.next_sweep(0)
    swept = []
    while due := hints.next_sweep(2 * SWEEP_S):
        swept.append(due)
        claim = hints.for_claim(2 * SWEEP_S, sweep=due)
        assert claim[due]["above"] == 0
        assert [each for each, of in claim.items() if each and not of["skip"]] == [due]
    assert sorted(swept) == ["slow", T, "u"]


def test_a_sweep_goes_on_until_it_has_reached_the_mark(hints: Hints) -> None:
    hints.claimed(T, 100, now=0)
    assert above(hints, TRAIL_S) == 100
    hints.swept(T, 99, TRAIL_S, is_full=True)
    assert hints.next_sweep(TRAIL_S) == T
    hints.swept(T, 99, TRAIL_S, is_full=False)
    hints.swept(T, 100, TRAIL_S, is_full=True)
    hints.swept(T, None, TRAIL_S, is_full=True)
    assert hints.next_sweep(TRAIL_S) is None


def test_a_topic_that_is_left_alone_is_not_swept(hints: Hints) -> None:
    hints.sweep()
    hints.skip(T, until=30)
    assert hints.next_sweep(29) is None
    assert not hints.found_nothing(29)
    assert hints.next_sweep(30) == T
