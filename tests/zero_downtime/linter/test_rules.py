"""Does the bad example of every rule break it, and does the good one break none?"""

import pytest

from gotong_royong.zero_downtime.linter import RULES
from gotong_royong.zero_downtime.linter.rules.examples import NEXT
from tests.zero_downtime.linter.history import lint

WITHOUT_EXAMPLES = {"E309", "W409", "W410"}
EXAMPLES = sorted(set(RULES) - WITHOUT_EXAMPLES)


@pytest.mark.parametrize("id", EXAMPLES)
def test_the_bad_example_breaks_it(tried, id):
    assert id in lint(tried, *RULES[id].bad.split(NEXT))[-1]


@pytest.mark.parametrize("id", EXAMPLES)
def test_the_good_example_breaks_nothing(tried, id):
    assert set().union(*lint(tried, *RULES[id].good.split(NEXT))) == set()
