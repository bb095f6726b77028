import pytest

from contributions import demo


@pytest.fixture
def small_neighborhoods(monkeypatch):
    monkeypatch.setattr(demo, "NEIGHBORHOOD", 10)
