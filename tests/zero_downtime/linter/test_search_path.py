"""Do migrations find the schemas of the configured search path in the scratch database?"""

import pytest

SETTINGS = r"""
DATABASES["default"]["OPTIONS"] = {{"options": '-c search_path="the\\ shop\'s",public'}}
{}
"""
ELSEWHERE = """
ZERO_DOWNTIME_SCRATCH_DATABASE = "elsewhere"
DATABASES["elsewhere"] = {**DATABASES["default"], "OPTIONS": {}}
"""
NAMED = """CREATE VIEW "the shop's".named AS SELECT * FROM "the shop's".items"""


@pytest.mark.parametrize("more", ["", ELSEWHERE])
def test_the_schemas_are_there(shop, more):
    shop.settings(SETTINGS.format(more))
    shop.write("0002_named", f"migrations.RunSQL({NAMED!r}, 'DROP VIEW named')")
    assert "2 migrations, 0 errors" in shop.succeed("lintmigrations", "shop")
