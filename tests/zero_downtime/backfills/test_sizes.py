"""Does a batch get as many rows as its time allows?"""

import pytest

from gotong_royong.zero_downtime.backfills.sizes import Size

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("a_batch", "a_row", "least", "most"),
    [
        (0.0, 0.001, 50, 200),  # as many as fit
        (0.0, 0.2, 1, 1),
        (0.3, 0.001, 50, 400),  # it is not the rows that take the time, but there is no use in many of them either
        (0.3, 0.0, 500, 1000),
    ],
)
def test_it_follows_the_time_that_rows_take_and_not_what_each_batch_costs(a_batch, a_row, least, most):
    size, seen = Size(1000, 1000), []
    for _ in range(40):
        size.follow(size.now, a_batch + a_row * size.now, 0.1)
        seen.append(size.now)
    assert least <= min(seen[20:]) <= max(seen[20:]) <= most


def test_that_few_rows_were_quick_says_nothing():
    size = Size(100, 1000)
    size.follow(10, 0.001, 0.1)
    assert size.now == 100
    size.follow(100, 0.05, 0.1)
    assert size.now == 200
