import pytest

from tests.conftest import _database
from tests.databases import url
from tests.zero_downtime.shop import ITEMS, Shop
from tests.zero_downtime.things import THING


@pytest.fixture
def shop(scratch, tmp_path):
    """A project on an empty database, with one migration to begin with."""
    project = Shop(tmp_path, url(scratch))
    project.write("0001_items", ITEMS)
    return project


@pytest.fixture
def things(shop):
    """One whose first migration makes a table with columns of several types."""
    shop.write("0001_items", THING)
    return shop


@pytest.fixture
def another(scratch):
    """A second empty database."""
    with _database() as database:
        yield database
