"""Does the bad example of every rule break it, does the good one break none, and does each rule have a judge?"""

import subprocess
import sys
from pathlib import Path

import pytest

from gotong_royong.zero_downtime.linter import RULES, rules
from gotong_royong.zero_downtime.linter.registry import read, rule
from tests.zero_downtime.linter.history import lint

NEXT = "\n# the next one\n"
WITHOUT_EXAMPLES = {"E309", "W409", "W410"}
EXAMPLES = sorted(set(RULES) - WITHOUT_EXAMPLES)
WRITTEN = Path(rules.__file__).parent
COMMANDS = "gotong_royong.zero_downtime.management.commands"
ANOTHER = '[E999]\ntitle = "t"\ncondition = "c"\neffect = "e"\ninstead = "i"\n'


@pytest.mark.parametrize("id", EXAMPLES)
def test_the_bad_example_breaks_it(tried, id):
    assert id in lint(tried, *RULES[id].bad.split(NEXT))[-1]


@pytest.mark.parametrize("id", EXAMPLES)
def test_the_good_example_breaks_nothing(tried, id):
    assert set().union(*lint(tried, *RULES[id].good.split(NEXT))) == set()


@pytest.fixture
def folder(tmp_path):
    """A copy of the files of rules, in which one may write."""
    for path in WRITTEN.glob("*.toml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_rule_is_read_with_its_judge(folder):
    assert read(folder) == RULES


def test_a_rule_without_a_judge_is_refused(folder):
    (folder / "more.toml").write_text(ANOTHER)
    with pytest.raises(ValueError, match=r'^Rule E999 in more.toml has no judge. .* in more.py, under @rule\("E999"\)'):
        read(folder)


def test_a_judge_without_a_rule_is_refused(folder):
    (folder / "undo.toml").unlink()
    with pytest.raises(ValueError, match=r"linter\.rules\.undo\.\w+ judges E3\d\d, which no TOML file in .* has\."):
        read(folder)


def test_a_rule_that_is_written_twice_is_refused(folder):
    (folder / "more.toml").write_text(ANOTHER.replace("E999", "E103"))
    with pytest.raises(ValueError, match=r"^Rule E103 in more.toml is written in another file, too"):
        read(folder)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [('title = "t"\n', "", "title"), ("instead", "insted", "insted"), ('"e"', "3", "int")],
    ids=["a text is missing", "an unknown word", "a number"],
)
def test_a_rule_that_is_written_wrongly_is_refused(tmp_path, old, new, what):
    (tmp_path / "more.toml").write_text(ANOTHER.replace(old, new))
    with pytest.raises(ValueError, match=rf"^Rule E999 in more.toml is not written as a rule is: .*{what}"):
        read(tmp_path, {"E999": iter})


def test_a_second_judge_is_refused():
    with pytest.raises(ValueError, match=r"linter\.rules\.\w+\.long_lock and builtins\.iter both judge E103"):
        rule("E103")(iter)


@pytest.mark.once
def test_other_commands_do_not_read_the_rules():
    code = f"import sys, django; django.setup(); import {COMMANDS}.migrate; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert f"{COMMANDS}.migrate" in modules
    assert [name for name in modules if "zero_downtime.linter" in name] == []
