import sys

import pytest

from contributions import demo
from contributions.demo import ahead


@pytest.fixture
def small_neighborhoods(monkeypatch):
    """All drawn in this process: another one would not know their size."""
    monkeypatch.setattr(demo, "NEIGHBORHOOD", 10)
    monkeypatch.setattr(ahead, "WORTH_A_PROCESS", sys.maxsize)
