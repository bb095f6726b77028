import pytest

from tests.conftest import _database
from tests.test_migrations import url
from tests.zero_downtime.shop import ITEMS, Shop


@pytest.fixture
def shop(scratch, tmp_path):
    """A project on an empty database, with one migration to begin with."""
    project = Shop(tmp_path, url(scratch))
    project.write("0001_items", ITEMS)
    return project


@pytest.fixture
def another(scratch):
    """A second empty database."""
    with _database() as database:
        yield database
