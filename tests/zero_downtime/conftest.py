import os
from pathlib import Path

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


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_linter():
    """Keep the linter's servers beside the tests' own, where all of a run find them, and nobody later."""
    folder = os.environ.get("EMBEDDED_POSTGRES_DIR")
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("DATABASE_URL") and folder:
            patch.setenv("XDG_CACHE_HOME", f"{Path(folder) / 'cache'}")
        yield
