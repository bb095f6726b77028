"""Are migrations judged on what they would find, and is it said where they are not?"""

import json
import subprocess

import pytest

NEEDED = "migrations.RunSQL('CREATE EXTENSION no_such_extension', migrations.RunSQL.noop)"
FAILING = "migrations.RunSQL('SELECT 1/0', migrations.RunSQL.noop)"
USES = "migrations.RunSQL('ALTER TABLE items ADD place geometry', 'ALTER TABLE items DROP place')"
RUNS = "migrations.RunSQL('CREATE INDEX late ON items (id)', 'DROP INDEX late')"


def linted(shop, *arguments, **environment):
    """Return the rules that each migration breaks, and what is said of those that could not be judged."""
    done = shop.run("lintmigrations", *arguments, "--format=json", **environment)
    found = [json.loads(line) for line in done.out.splitlines()]
    broken = {}
    for one in found:
        if one["id"].endswith("W409"):  # of the names
            continue
        broken.setdefault(one["migration"], []).append(one["id"].removeprefix("zero_downtime."))
    assert "Traceback" not in done.err, done.err
    return broken, {one["migration"]: one["message"] for one in found if one["id"].endswith("W401")}


def commit(shop):
    for arguments in (["init", "--quiet", "--initial-branch=main"], ["add", "shop"], ["commit", "--quiet", "-m", "1"]):
        name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *name, *arguments], check=True, cwd=shop.folder)  # noqa: S607


@pytest.mark.parametrize("broken", [NEEDED, FAILING], ids=["lacks an extension", "fails"])
@pytest.mark.parametrize("selected", ["since", "name", "app", "all", "unapplied"])
def test_a_migration_whose_ground_could_not_be_laid_is_not_blamed(shop, selected, broken):
    shop.app("beside")
    shop.write("0002_needed", broken)
    commit(shop)
    shop.write("0003_uses", USES)
    shop.write("0004_runs", RUNS)
    shop.write("0001_alone", "migrations.RunSQL('CREATE TABLE alone (id int)', 'DROP TABLE alone')", app="beside")
    shop.write("0002_index", "migrations.RunSQL('CREATE INDEX i ON alone (id)', 'DROP INDEX i')", app="beside")
    arguments = {"since": ["--since=main"], "name": ["shop", "0003"], "app": ["shop"], "all": ["--all"]}
    for _ in range(2):  # the second time, the ground of --since is a copy
        found, why = linted(shop, *arguments.get(selected, ["--unapplied"]))
        assert found["0003_uses"] == ["W401"]
        assert "shop.0002_needed (" in why["0003_uses"]
        assert "no_such_extension" in why["0003_uses"] or "division by zero" in why["0003_uses"]
        if selected != "name":
            assert found["0004_runs"].count("W401") == 1
            assert "shop.0002_needed (" in why["0004_runs"]
            assert "E301" not in found["0004_runs"]
        if selected not in {"since", "name"}:
            assert found["0002_needed"][0] == ("W401" if broken == NEEDED else "E301")
        if selected == "all":
            assert found["0002_index"] == ["E103"]
