"""The tables of `core/order.py`, a test a row."""

from effectonce.core.order import Order, Queues, lanes_of


def test_records_of_one_key_share_a_lane_or_they_would_overtake_one_another() -> None:
    assert lanes_of(Order.KEY, [b"k", b"l", b"k"]) == [b"k", b"l", b"k"]


def test_a_record_without_a_key_has_its_own_lane_or_all_of_those_would_wait_in_line() -> None:
    lanes = lanes_of(Order.KEY, [None, b"", None])
    assert lanes is not None
    queues = Queues()
    assert [queues.enter(row, lane) for row, lane in enumerate(lanes)] == [True] * 3
    assert queues.enter(3, b"") is False


def test_a_partition_is_one_lane_or_its_records_would_overtake_one_another() -> None:
    lanes = lanes_of(Order.PARTITION, [None, b"k"])
    assert lanes is not None
    queues = Queues()
    assert [queues.enter(row, lane) for row, lane in enumerate(lanes)] == [True, False]


def test_without_order_each_record_has_its_own_lane_or_keys_would_still_hold_it_up() -> None:
    assert lanes_of(Order.NONE, [b"k", b"k"]) is None


def test_the_one_behind_is_the_head_once_the_first_leaves_or_the_lane_would_stand_still() -> None:
    queues = Queues()
    assert [queues.enter(row, "a") for row in range(3)] == [True, False, False]
    assert (queues.is_head(0), queues.is_head(1)) == (True, False)
    assert queues.leave(0) == 1
    assert (queues.is_head(1), queues.is_head(2)) == (True, False)
    assert queues.leave(1) == 2
    assert queues.leave(2) is None


def test_a_lane_that_is_empty_is_forgotten_or_every_key_ever_seen_would_be_kept() -> None:
    queues = Queues()
    for row in range(4):
        queues.enter(row, "a")
    for row in range(4):
        queues.leave(row)
    assert len(queues) == 0
    assert queues.enter(9, "a") is True


def test_one_that_comes_while_the_last_is_there_stands_behind_it_or_it_would_overtake() -> None:
    queues = Queues()
    queues.enter(0, "a")
    queues.enter(1, "a")
    queues.leave(0)
    assert queues.enter(2, "a") is False
    assert queues.leave(1) == 2


def test_a_record_without_a_lane_leaves_nothing_behind() -> None:
    queues = Queues()
    assert queues.enter(0, None) is True
    assert queues.leave(0) is None
    assert len(queues) == 0
