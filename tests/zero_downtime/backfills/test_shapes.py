"""Does a backfill also do what is no plain table: joins, inherited models, views, partitions, keys of any type?"""

import pytest
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Upper

from accounts.models import Skill
from gotong_royong.zero_downtime.backfills import declarations
from gotong_royong.zero_downtime.exceptions import BackfillRefused
from gotong_royong.zero_downtime.models import Backfill
from tests.test_migrations import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE
from tests.zero_downtime.load import holding

Status = Backfill.Status


class TestWhatUsersWriteMeanwhile:
    """They have changed a row when a batch comes, and commit while that waits for the row."""

    @pytest.fixture(autouse=True)
    def patience(self, settings):
        settings.ZERO_DOWNTIME_LOCK_TIMEOUT = 5.0

    @pytest.mark.parametrize("python", [False, True])
    @pytest.mark.parametrize(
        "where",
        [Q(description=None), Q(description=None, users=None), Q(pk__in=Skill.objects.filter(description=None))],
        ids=["plain", "join", "subquery"],
    )
    def test_it_stays(self, skills, fill, declare, run, ask, where, python):
        ask("ALTER TABLE skills SET (fillfactor = 50); CREATE INDEX ON skills (description)")  # it stays in its block
        fill(3_000)
        how = {"process": lambda self, batch: batch.update(description=Upper("name"))} if python else {}
        users = "UPDATE skills SET description = 'theirs' WHERE name LIKE '%99'"
        with holding(conninfo(skills), users, 1.0):
            row = run(declare(where=where, **how))
        assert row.status == Status.SUCCEEDED
        assert ask("SELECT count(*) FROM skills WHERE description = 'theirs'") == ask(UNDONE) == 30
        assert ask(TWICE) == 0

    @pytest.mark.parametrize(
        ("changed", "body"),
        [
            ("top", {"where": Q(description=None), "update": {"description": "ours"}}),
            ("sub", {"where": Q(note=None), "update": {"description": "ours", "note": "ours"}}),
            ("top", {"where": Q(description=None), "process": lambda self, batch: batch.update(description="ours")}),
        ],
    )
    def test_it_stays_in_the_tables_of_inherited_models(self, skills, declare, run, ask, model, changed, body):
        top = model("Top", skills, description=models.TextField(null=True))
        model("Sub", skills, base=top, note=models.TextField(null=True))
        ask("INSERT INTO top (description) SELECT NULL FROM generate_series(1, 3000)")
        ask("INSERT INTO sub SELECT id FROM top; ANALYZE top; ANALYZE sub")
        column, key = {"top": ("description", "id"), "sub": ("note", "top_ptr_id")}[changed]
        with holding(conninfo(skills), f"UPDATE {changed} SET {column} = 'theirs' WHERE {key} % 100 = 0", 1.0):
            row = run(declare(model="accounts.Sub", **body))
        assert row.status == Status.SUCCEEDED
        assert ask(f"SELECT count(*) FROM {changed} WHERE {column} = 'theirs'") == 30
        assert ask("SELECT count(*) FROM top WHERE description = 'ours'") == 2970


class TestDeclarations:
    @pytest.mark.parametrize(
        ("update", "told"),
        [
            ({"note": "", "description": "", "weight": 1}, None),
            ({"note": F("weight")}, "Joined field references are not permitted"),
            ({"weight": "much"}, "Field 'weight' expected a number but got 'much'"),
        ],
    )
    def test_inherited_models_are_judged_without_a_database(self, declare, model, update, told):
        """As no database is at hand here."""
        top = model("Top", description=models.TextField(null=True), weight=models.IntegerField(null=True))
        sub = model("Sub", base=top, note=models.TextField(null=True))
        found = declarations.declared(declare(model="accounts.Sub", where=Q(description=None), update=update))
        if not told:
            assert declarations.model_of(found) is sub
            return
        with pytest.raises(BackfillRefused, match=f"^accounts.trial does not fit the models .*: {told}"):
            declarations.model_of(found)


class TestTables:
    @pytest.mark.parametrize("how", [{"process": lambda self, batch: batch.update(endorsements_count=5)}, {}])
    @pytest.mark.parametrize("where", [None, Q(endorsements_count=0)])
    def test_composite_keys(self, fill, declare, run, ask, how, where):
        fill(800)
        ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 2) i")
        ask("INSERT INTO user_skills (user_id, skill_id) SELECT u.id, s.id FROM users u, skills s; ANALYZE user_skills")
        ask("ALTER TABLE user_skills ADD COLUMN place int GENERATED ALWAYS AS IDENTITY")
        ask("ALTER TABLE user_skills ADD CONSTRAINT no_seven CHECK (endorsements_count = 0 OR place <> 7)")
        body = {"model": "accounts.UserSkill", "where": where, "update": {"endorsements_count": 5}, **how}
        if how:
            del body["update"]
        row = run(declare(**body))
        assert (row.status, row.set_aside.count()) == (Status.FAILED, 1)
        assert ask("SELECT array_agg(place) FROM user_skills WHERE endorsements_count = 0") == [7]
