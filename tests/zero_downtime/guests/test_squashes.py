"""Do squashes in squashes, old squashes and models that move between apps go up, down, and through a lost history?"""

import pytest

from tests.test_migrations import look
from tests.zero_downtime.running.test_recall import FILL, INDEX, LABEL, recorded, sql

pytestmark = [pytest.mark.once, pytest.mark.newest]

NESTS = pytest.mark.needs_django(6, 0)
ALL = {"0001_items", "0002_label", "0003_index", "0004_fill"}
INNER = 'replaces = [("shop", "0002_label"), ("shop", "0003_index")]'
SEVERAL = "000[23]%", "0002_(inner|outer)", "%_(label|index|fill)", "0002_(label|inner)|0004%"
OUTER = 'replaces = [("shop", "0002_inner"), ("shop", "0004_fill")]'


@pytest.fixture
def labeled(shop):
    shop.write("0002_label", LABEL)
    shop.write("0003_index", INDEX)
    shop.write("0004_fill", FILL)
    return shop


def squash(shop, *, nested=True):
    """Write a squash of the label and its index, and one of that and the fill, each needing the items."""
    for name, operations, attributes in (
        ("0002_inner", f"{LABEL}, {INDEX}", INNER),
        *([("0002_outer", f"{LABEL}, {INDEX}, {FILL}", OUTER)] if nested else []),
    ):
        shop.write(name, operations, attributes)
        path = shop.migrations / f"{name}.py"
        text = path.read_text()
        start, end = text.index("dependencies = ["), text.index("]", text.index("dependencies = ["))
        path.write_text(f"{text[:start]}dependencies = [('shop', '0001_items'){text[end:]}")


@NESTS
@pytest.mark.parametrize("applied", ["before", "after"])
@pytest.mark.parametrize("lost", ["%", "0002_outer", "0002_inner", "0003%", "0004%", *SEVERAL])
def test_a_squash_in_a_squash(labeled, scratch, applied, lost):
    if applied == "before":
        labeled.succeed("migrate")
    squash(labeled)
    labeled.succeed("migrate")
    everything = ALL | {"0002_inner", "0002_outer"}
    assert recorded(scratch) == everything
    assert "No migrations to apply" in labeled.succeed("migrate")
    assert "[X] 0002_outer (2 squashed migrations)" in labeled.succeed("showmigrations", "shop")
    before = look(scratch)
    sql(scratch, f"DELETE FROM django_migrations WHERE app = 'shop' AND name SIMILAR TO '{lost}'")
    shown = labeled.succeed("showmigrations", "shop")
    assert "[ ]" not in shown or "has lost these, and migrate records them again: " in shown
    said = labeled.succeed("migrate")
    assert "Applying" not in said
    assert recorded(scratch) == everything
    assert sql(scratch, "SELECT count(*) FROM shop_label") == [(1,)]
    assert look(scratch) == before
    assert "[X] 0002_outer" in labeled.succeed("showmigrations", "shop")
    labeled.succeed("rollback", "--steps", "1", "--yes")
    assert recorded(scratch) == {"0001_items"}
    assert sql(scratch, "SELECT to_regclass('shop_label')") == [(None,)]
    labeled.succeed("migrate")
    assert recorded(scratch) == everything
    assert look(scratch) == before


@pytest.mark.parametrize("lost", ["%", "0002_inner", "0003%", "0002_label", "000[23]%"])
def test_a_squash_that_was_applied_long_ago_and_whose_files_are_gone(labeled, scratch, lost):
    (labeled.migrations / "0004_fill.py").unlink()
    labeled.succeed("migrate")
    squash(labeled, nested=False)
    labeled.succeed("migrate")
    for name in ("0002_label", "0003_index"):
        (labeled.migrations / f"{name}.py").unlink()
    before = look(scratch)
    sql(scratch, f"DELETE FROM django_migrations WHERE app = 'shop' AND name SIMILAR TO '{lost}'")
    said = labeled.succeed("migrate")
    assert "Applying" not in said
    assert recorded(scratch) == {*ALL, "0002_inner"} - {"0004_fill"}
    assert look(scratch) == before
    assert "[X] 0002_inner (2 squashed migrations)" in labeled.succeed("showmigrations", "shop")
    assert "No migrations to apply" in labeled.succeed("migrate")


def test_a_part_of_a_squash_that_was_taken_back_is_not_taken_for_a_lost_one(labeled, scratch):
    labeled.succeed("migrate")
    squash(labeled, nested=False)
    labeled.succeed("migrate")
    before = look(scratch)
    labeled.succeed("migrate", "shop", "0002_label", "--no-input")
    assert recorded(scratch) == {"0001_items", "0002_label"}
    assert " [ ] 0003_index" in labeled.succeed("showmigrations", "shop")
    said = labeled.succeed("migrate")
    assert "lost" not in said
    assert "Applying shop.0003_index... OK" in said
    assert recorded(scratch) == {*ALL, "0002_inner"}
    assert look(scratch) == before


def test_nor_is_one_where_stock_django_has_left_the_row_of_the_squash(labeled, scratch):
    labeled.succeed("migrate")
    squash(labeled, nested=False)
    labeled.succeed("migrate")
    labeled.succeed("migrate", "shop", "0002_label", "--no-input")
    sql(scratch, "INSERT INTO django_migrations (app, name, applied) VALUES ('shop', '0002_inner', now())")
    assert "Applying shop.0003_index... OK" in labeled.succeed("migrate")
    assert recorded(scratch) == {*ALL, "0002_inner"}
