"""What a run goes by while it is going on."""

import pytest

from effectonce.testing.chaos.journal import Kind, Record
from effectonce.testing.chaos.tally import Tally


def told(*records: tuple[Kind, int, int]) -> Tally:
    tally = Tally()
    for time_ns, (kind, worker, partition) in enumerate(records):
        tally.add(Record(kind, worker, time_ns, partition))
    return tally


FROZEN = ((Kind.ASSIGNED, 1, 0), (Kind.ASSIGNED, 1, 3), (Kind.FROZEN, 1, 0))


@pytest.mark.parametrize(
    ("then", "overtaken"),
    [
        ((), False),
        (((Kind.ASSIGNED, 2, 5),), False),
        (((Kind.ASSIGNED, 1, 3),), False),
        (((Kind.ASSIGNED, 2, 3),), True),
        (((Kind.ASSIGNED, 2, 3), (Kind.THAWED, 1, 0)), False),
    ],
)
def test_no_worker_is_thawed_before_another_was_given_its_partition(
    then: tuple[tuple[Kind, int, int], ...], overtaken: bool
) -> None:
    assert (1 in told(*FROZEN, *then).overtaken) is overtaken


def test_a_frozen_worker_that_ends_does_not_hold_up_the_end_of_the_run() -> None:
    assert not told(*FROZEN, (Kind.ENDED, 1, 0)).frozen
