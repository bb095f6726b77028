"""Does the benchmark still run? A small one; what its figures are is no matter here."""

import re
import subprocess
import sys
from importlib import import_module

import pytest
from django.conf import settings
from django.db.migrations.state import ProjectState

from tests.bench.shop.trials import TRIALS
from tests.databases import look

pytestmark = [pytest.mark.once, pytest.mark.timeout(600)]

INITIAL = import_module("tests.bench.shop.migrations.0001_initial").Migration
SAFE = {name: trial for name, trial in TRIALS.items() if trial.safe}


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_victims():
    done = bench("--parts", "victims", "--rows", "1000", "--hold", "0.1", "--trials", "index,type")
    assert done.returncode == 0, done.stderr
    seen = re.findall(r"(stock|peer|ours) +[\d,]+ ms +[\d,]+ ms +[\d.]+ s  (.+)", done.stdout)
    index = [("stock", "applied"), ("peer", "applied"), ("ours", "applied")]
    change_of_type = [("stock", "applied"), ("peer", "refused as unsafe"), ("ours", "applied")]
    assert seen == index + change_of_type, done.stdout


@pytest.mark.slow
def test_backfill():
    done = bench("--parts", "backfill", "--rows", "3000", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    ways = re.findall(r"  (\S.*?) +[\d.]+ s +[\d.]+ +[\d.]+ +[\d.]+ s +[\d.]+x +\d+ MB +(\d+)", done.stdout)
    assert len(ways) == 12, done.stdout
    assert {undone for _, undone in ways} == {"0"}
    among_others = re.findall(r"  (\S.*?) +[\d.]+ s +[\d.]+(?: +[\d.,]+ ms){3} +(\d+)", done.stdout)
    assert [undone for _, undone in among_others] == ["3000", *"0000000"] or "no program pgbench" in done.stdout, (
        done.stdout
    )


@pytest.mark.parametrize("trial", SAFE.values(), ids=SAFE)
def test_the_safe_statements_lead_to_the_same_tables(scratch, trial):
    def tables(change):
        with scratch.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        with scratch.schema_editor() as editor:
            before = INITIAL("0001_initial", "shop").apply(ProjectState(), editor)
        change(before)
        return look(scratch)

    def djangos(before):
        after = before.clone()
        trial.operation.state_forwards("shop", after)
        with scratch.schema_editor() as editor:
            trial.operation.database_forwards("shop", editor, before, after)

    def ours(before):
        with scratch.cursor() as cursor:
            for statement in trial.safe:
                cursor.execute(statement)

    assert tables(ours) == tables(djangos) != tables(lambda before: None)


@pytest.mark.slow
def test_cost():
    done = bench("--parts", "cost", "--sizes", "11", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"11  (from zero|nothing new)(?: +[\d.]+ s +[\d.]+ s +[\d.]+){2}\n", done.stdout)
    assert rows == ["from zero", "nothing new"], done.stdout


@pytest.mark.slow
def test_linting():
    done = bench("--parts", "linting", "--sizes", "11", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\n +11(?: +[\d.]+ s){4} +[\d.]+\n", done.stdout), done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "victims,speed"], "no part speed: choose from victims, cost, linting"),
        (["--rows", "0"], "invalid numbers value: '0'"),
        (["--sizes", "100,many"], "invalid numbers value: '100,many'"),
    ],
)
def test_bad_options(arguments, message):
    done = bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
