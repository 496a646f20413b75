"""What counts as trouble that stays."""

from daemon.trouble import TRIES, Trouble


def test_trouble_stays_when_a_key_is_in_every_batch_that_fails() -> None:
    trouble = Trouble()
    for number in range(TRIES):
        trouble.failed(["bad", f"other {number}"], 0)
        assert not trouble.stays
    trouble.failed(["bad"], 0)
    assert trouble.stays


def test_batches_without_a_common_key_are_different_troubles() -> None:
    trouble = Trouble()
    for number in range(2 * TRIES):
        trouble.failed([str(number)], 0)
    assert not trouble.stays


def test_a_batch_that_passes_clears_its_keys_and_only_those() -> None:
    trouble = Trouble()
    for _ in range(TRIES):
        trouble.failed(["a", "b"], 0)
        trouble.passed(["a"])
    trouble.failed(["a"], 0)
    assert not trouble.stays
    for _ in range(TRIES):
        trouble.failed(["a"], 0)
        trouble.passed(["b"])
    assert trouble.stays


def test_others_passed_if_something_was_committed_since_it_began() -> None:
    trouble = Trouble()
    trouble.failed(["a"], 7)
    assert not trouble.others_passed(7)
    trouble.failed(["a"], 8)
    assert trouble.others_passed(8)
