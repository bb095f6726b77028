"""How is said what was found, and is the page of the rules what the rules are?"""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.color import no_style

from gotong_royong.zero_downtime import linter
from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError
from gotong_royong.zero_downtime.linter import RULES, judge, reports
from tests.zero_downtime.linter.history import trace

pytestmark = pytest.mark.once

INDEX = """operations = [migrations.AddIndex("order", models.Index(fields=["number"], name="order_number"))]"""


@pytest.fixture
def seen(tried):
    return trace(tried, INDEX)[0]


@pytest.fixture
def found(seen):
    violations = judge(seen)
    assert [one.rule.id for one in violations] == ["E103"]
    return violations


def test_the_text_has_the_code_to_write_with_the_user_s_names(found):
    text = "\n".join(reports.text(found, no_style()))
    assert "E103 An index is built while writes wait (up, operation 1)" in text
    assert "SHARE on shop_order blocks writes while index order_number is built" in text
    assert 'CREATE INDEX CONCURRENTLY IF NOT EXISTS order_number ON shop_order (number)"' in text


def test_json_has_one_object_a_line(found):
    (line,) = reports.as_json(found)
    told = json.loads(line)
    assert told["id"] == "zero_downtime.E103"
    expected = {"level": "error", "app": "shop", "direction": "up", "operation": 0, "table": "shop_order"}
    assert told.items() >= {**expected, "lock": "SHARE", "blocks": "writes", "scans": True, "rewrites": False}.items()


def test_github_gets_one_line_for_each(found):
    (line,) = reports.github(found)
    assert line.startswith("::error file=")
    assert "title=E103 An index is built while writes wait::shop.20260101010000_step (up, operation 1)%0ASHARE" in line


def test_sarif_names_each_rule_and_place(found):
    run = json.loads("".join(reports.sarif(found)))["runs"][0]
    assert len(run["tool"]["driver"]["rules"]) == len(RULES)
    assert run["results"][0]["ruleId"] == "zero_downtime.E103"
    assert "artifactLocation" in run["results"][0]["locations"][0]["physicalLocation"]


def test_the_explanation_has_every_statement_up_and_down(seen):
    text = "\n".join(reports.explanation(seen))
    assert "takes SHARE on shop_order, blocks writes" in text
    assert "index order_number of shop_order is new" in text
    assert "takes ACCESS EXCLUSIVE on shop_order, blocks reads and writes" in text
    assert "index order_number of shop_order is gone" in text


def test_the_page_of_the_rules_is_fresh():
    page = Path(linter.__file__).with_name("RULES.md").read_text()
    assert page == reports.document(), "Write it again: python manage.py lintmigrations --rules > …/linter/RULES.md"


def test_every_rule_says_what_and_what_instead():
    for rule in RULES.values():
        assert rule.title
        assert rule.condition.endswith(".")
        assert rule.instead.strip()


@pytest.mark.django_db(transaction=True)
class TestCommand:
    def run(self, *arguments, **options):
        out = StringIO()
        try:
            call_command("lintmigrations", *arguments, **options, stdout=out, no_color=True)
        except ZeroDowntimeError as error:
            return out.getvalue(), str(error)
        return out.getvalue(), ""

    def test_a_clean_migration(self):
        out, error = self.run("accounts", "20260210130000")
        assert (out, error) == ("1 migration, 0 errors, 0 warnings.\n", "")

    def test_errors_end_it_with_a_status(self):
        out, error = self.run("contenttypes", "0002", format="json")
        told = [json.loads(line) for line in out.splitlines()]
        assert {one["migration"] for one in told} == {"0002_remove_content_type_name"}
        assert error == "1 migration, 1 error, 3 warnings."

    def test_explain(self):
        out, _ = self.run("accounts", "20260210130000", explain=True)
        assert "takes ACCESS EXCLUSIVE on users, blocks reads and writes" in out

        assert out.endswith("1 migration, 0 errors, 0 warnings.\n")

    def test_explain_says_what_is_broken_and_is_for_reading_only(self):
        out, _ = self.run("contenttypes", "0002", explain=True)
        assert out.index("down:") < out.index("E202 A column goes that running code uses")
        assert "Leave out --explain or --format" in self.run("contenttypes", explain=True, format="json")[1]

    def test_a_name_that_is_none(self):
        assert "No migration of accounts begins with 'x'" in self.run("accounts", "x")[1]

    def test_rules(self):
        assert self.run(rules=True)[0] == reports.document()
