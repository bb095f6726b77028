"""Does a backfill also do what is no plain table: joins, inherited models, views, partitions, keys of any type?"""

import pytest
from django.contrib.postgres.fields import ArrayField, IntegerRangeField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Upper

from accounts.models import Skill
from gotong_royong.zero_downtime.backfills import control, declarations, ranges
from gotong_royong.zero_downtime.backfills.changes import Changes
from gotong_royong.zero_downtime.backfills.statements import Work
from gotong_royong.zero_downtime.exceptions import BackfillFailed, BackfillRefused
from gotong_royong.zero_downtime.models import Backfill
from gotong_royong.zero_downtime.operations import RunBackfill
from tests.databases import conninfo
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE
from tests.zero_downtime.load import holding
from tests.zero_downtime.steps import run as run_operations

Status = Backfill.Status


class Marked(models.CharField):
    """In Python its values begin with a mark that the database does not keep."""

    def from_db_value(self, value, expression, connection):
        return f"mark {value}"

    def get_prep_value(self, value):
        return value[len("mark ") :]


@pytest.fixture
def limited(skills, ask):
    """A role that may do with the tables what their owner may, but for partitions that come later."""
    role = f"limited_{skills.alias}"
    ask(f"CREATE ROLE {role}")
    ask(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    yield role
    ask(f"DROP OWNED BY {role}; DROP ROLE {role}")


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

    @pytest.mark.parametrize("how", [{"process": lambda self, batch: batch.update(v="y")}, {"update": {"v": "y"}}])
    @pytest.mark.parametrize("by", ["", "PARTITION BY HASH (id)"])
    def test_in_another_schema(self, skills, declare, run, ask, model, how, by):
        ask(f"CREATE SCHEMA other; CREATE TABLE other.plain (id bigint PRIMARY KEY, v text) {by}")
        for part in range(2 if by else 0):
            partition = f"PARTITION OF other.plain FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
            ask(f"CREATE TABLE other.plain{part} {partition}")
        ask("INSERT INTO other.plain SELECT generate_series(1, 3000); ANALYZE other.plain")
        model("Plain", meta={"db_table": 'other"."plain'}, v=models.TextField(null=True))
        row = run(declare(model="accounts.Plain", where=Q(v=None), **how))
        assert row.status == Status.SUCCEEDED
        assert (row.order == "keys") is bool(by)
        assert ask("SELECT count(*) FROM other.plain WHERE v = 'y'") == 3_000

    @pytest.mark.parametrize("by", ["", "PARTITION BY HASH (id)"])
    def test_a_key_that_is_another_one_in_python(self, declare, run, ask, model, by):
        ask(f"CREATE TABLE thing (id text PRIMARY KEY, v text) {by}")
        if by:
            ask("CREATE TABLE part PARTITION OF thing FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
        ask("INSERT INTO thing SELECT 'key ' || i FROM generate_series(1, 3000) i; ANALYZE thing")
        model("Thing", id=Marked(primary_key=True, max_length=20), v=models.TextField(null=True))
        how = {"process": lambda self, batch: batch.update(v="y")}
        row = run(declare(model="accounts.Thing", where=Q(v=None), **how))
        assert row.status == Status.SUCCEEDED
        assert sum(row.ranges.filter(number__gt=0).values_list("rows_done", flat=True)) > 2_900  # not only the looks

    @pytest.mark.parametrize(("index", "order"), [(False, "stripes"), (True, "physical")])
    def test_a_foreign_key_that_is_to_be_filled(self, skills, declare, run, ask, model, index, order):
        org = model("Org", skills, name=models.TextField())
        member = model("Member", skills, org=models.ForeignKey(org, models.CASCADE, null=True, db_index=index))
        ask("INSERT INTO org (name) VALUES ('theirs')")
        ask("INSERT INTO member (org_id) SELECT NULL FROM generate_series(1, 3000); ANALYZE member")
        name = declare(model="accounts.Member", where=Q(org=None), update={"org": 1})
        assert Work(declarations.declared(name), member, skills.alias).is_of_one_table
        row = run(name)
        assert (row.status, row.order) == (Status.SUCCEEDED, order)
        assert ask("SELECT count(*) FROM member WHERE org_id = 1") == 3_000

    def test_tables_that_inherit_from_it(self, skills, fill, declare, run, ask, settings, capsys):
        settings.ZERO_DOWNTIME_BACKFILL_INLINE = 1_000
        fill(100)
        ask("CREATE TABLE more () INHERITS (skills)")
        ask("INSERT INTO more (name) SELECT i FROM generate_series(1, 3000) i; ANALYZE more")
        name = declare()
        run_operations(skills, RunBackfill(name), atomic=False)
        assert "About 3,100 rows, more than ZERO_DOWNTIME_BACKFILL_INLINE" in capsys.readouterr().out
        row = run(name)
        assert (row.status, row.order, ask(UNDONE)) == (Status.SUCCEEDED, "keys", 0)

    @pytest.mark.parametrize("where", [None, Q(description=None)])
    def test_a_view(self, fill, declare, run, ask, where):
        fill(3_000)
        ask("ALTER TABLE skills RENAME TO theirs; CREATE VIEW skills AS SELECT * FROM theirs")
        row = run(declare(where=where))
        assert (row.status, row.order, ask(UNDONE)) == (Status.SUCCEEDED, "keys", 0)

    def test_a_foreign_table_is_not_sampled(self, skills, ask, model, monkeypatch):
        """This one could not even be asked, for its wrapper does nothing."""
        monkeypatch.setattr(ranges, "BLOCKS", 8)
        part = model("Part", k=models.IntegerField(primary_key=True))
        ask("CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing")
        ask("CREATE TABLE part (k int) PARTITION BY RANGE (k)")
        ask("CREATE TABLE here PARTITION OF part FOR VALUES FROM (0) TO (9999)")
        ask("INSERT INTO part SELECT generate_series(0, 9998)")
        assert len(ranges.cut_by_keys(skills, part, ranges.parts_of(skills, part))) > 3
        ask("CREATE FOREIGN TABLE there PARTITION OF part FOR VALUES FROM (9999) TO (99999) SERVER nowhere")
        cut = ranges.cut_by_keys(skills, part, ranges.parts_of(skills, part))
        assert cut == [{"lower": None, "upper": None}]

    @pytest.mark.parametrize("python", [False, True])
    @pytest.mark.parametrize("secure", [False, True])
    def test_partitions_to_which_only_their_table_leads(self, skills, fill, declare, run, ask, limited, secure, python):
        ask(
            "ALTER TABLE skills RENAME TO old; CREATE TABLE skills (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (id)"
        )
        ask(f"GRANT ALL ON skills TO {limited}")
        ask("CREATE TABLE part PARTITION OF skills FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
        fill(3_000)
        if secure:
            ask("ALTER TABLE skills ENABLE ROW LEVEL SECURITY")
            ask(f"CREATE POLICY theirs ON skills TO {limited} USING (name LIKE '%7'); GRANT ALL ON part TO {limited}")
        skills.settings_dict["OPTIONS"] = {"options": f"-c role={limited}"}
        how = {"process": lambda self, batch: batch.update(description=Upper("name"))} if python else {}
        name = declare(**how)
        if secure:  # who does not see all rows cannot do them all
            with pytest.raises(BackfillFailed, match='affected by row-level security policy for table "skills"'):
                run(name)
        else:
            row = run(name)
            assert (row.status, row.order) == (Status.SUCCEEDED, "keys")
        assert ask(UNDONE) == (3_000 if secure else 0)

    def test_a_manager_that_hides_rows(self, fill, declare, run, ask, skills, model):
        class Some(models.Manager):
            def get_queryset(self):
                return super().get_queryset().exclude(v="hidden")

        meta = {"base_manager_name": "objects"}
        model("Kept", skills, meta=meta, v=models.TextField(null=True), objects=Some())
        ask("INSERT INTO kept (v) SELECT CASE WHEN i % 3 = 0 THEN 'hidden' END FROM generate_series(1, 300) i")
        row = run(declare(model="accounts.Kept", where=~Q(v="done") | Q(v=None), update={"v": "done"}))
        assert row.status == Status.SUCCEEDED
        assert ask("SELECT count(*) FROM kept WHERE v = 'done'") == 300


@pytest.mark.once
class TestRowsSetAside:
    def test_a_row_that_was_set_aside_in_a_batch_that_is_done_again(self, skills, fill, declare, run, ask):
        """The stripes before the one that is locked are done a second time with it."""
        fill(20_000)
        ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description <> 'SKILL 1 15000')")
        late = "SELECT FROM skills WHERE ctid = (SELECT max(ctid) FROM skills WHERE hashtid(ctid) & 7 = 7) FOR UPDATE"
        with holding(conninfo(skills), late, 3.0):
            row = run(declare())
        assert (row.status, row.set_aside.count(), ask(UNDONE)) == (Status.FAILED, 1, 1)
        assert ask(TWICE) == 0

    def test_one_that_another_worker_has_set_aside(self, skills, declare):
        row = control.get_or_create(declare(), skills.alias)
        work = Work(declarations.declared(row.name), Skill, skills.alias)
        for reason in ("the first", "the second"):
            Changes(row, work)._set_aside("0" * 32, ValueError(reason))
        assert row.set_aside.get().error == "ValueError: the second"

    def test_they_are_not_counted_as_done(self, fill, declare, run, ask):
        fill(2_500)
        ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description NOT LIKE '%77')")
        for where in (Q(description=None), None):
            row = run(declare(f"Trial{where is None}", where=where))
            assert (control.progress(row).rows, row.set_aside.count()) == (2_475, 25)

    @pytest.mark.parametrize("python", [False, True])
    def test_a_row_that_the_where_joins_to_several(self, fill, declare, run, ask, python):
        fill(20)
        ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 3) i")
        ask("INSERT INTO user_skills (user_id, skill_id) SELECT u.id, s.id FROM users u, skills s")
        ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description <> 'SKILL 1 7')")
        how = {"process": lambda self, batch: batch.update(description=Upper("name"))} if python else {}
        row = run(declare(where=Q(description=None, users__isnull=False), **how))
        assert (row.status, row.set_aside.count(), control.progress(row).rows) == (Status.FAILED, 1, 19)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            (models.BinaryField(primary_key=True), "decode(md5(i::text), 'hex')"),
            (models.DateTimeField(primary_key=True), "now() + i * interval '1.000001 s'"),
            (models.DateField(primary_key=True), "current_date + i"),
            (models.TimeField(primary_key=True), "time '12:00' + i * interval '1.000001 s'"),
            (models.DurationField(primary_key=True), "i * interval '1 day 1.000001 s'"),
            (models.DecimalField(primary_key=True, max_digits=9, decimal_places=4), "i / 7.0"),
            (models.FloatField(primary_key=True), "i / 7.0::float"),
            (models.GenericIPAddressField(primary_key=True), "inet '::1' + i"),
            (models.CharField(primary_key=True, max_length=9), "'\"' || i || ', '"),
            (ArrayField(models.DateField(), primary_key=True), "ARRAY[current_date, current_date + i]"),
            (IntegerRangeField(primary_key=True), "int4range(i, i + 5)"),
            (models.JSONField(primary_key=True), "jsonb_build_object('i', i)"),
        ],
        ids=lambda of: type(of).__name__ if isinstance(of, models.Field) else "",
    )
    def test_keys_of_any_type(self, skills, declare, run, ask, model, key, value):
        model("Thing", skills, k=key, v=models.IntegerField(), done=models.BooleanField(null=True))
        ask(f"INSERT INTO thing (v, k) SELECT i, {value} FROM generate_series(1, 50) i")
        ask("ALTER TABLE thing ADD CONSTRAINT no_seven CHECK (v <> 7 OR done IS NULL)")
        row = run(declare(model="accounts.Thing", where=Q(done=None), update={"done": True}))
        assert row.status == Status.FAILED
        assert str(row.set_aside.get()).startswith("row ")
        assert ask("SELECT array_agg(v) FROM thing WHERE done IS NULL") == [7]

    def test_a_key_that_points_to_one(self, skills, declare, run, ask, model):
        thing = model("Thing", skills, k=models.BinaryField(primary_key=True))
        of = models.OneToOneField(thing, models.CASCADE, primary_key=True)
        model("More", skills, of=of, done=models.BooleanField(null=True))
        ask("INSERT INTO thing SELECT decode(md5(i::text), 'hex') FROM generate_series(1, 50) i")
        ask("ALTER TABLE more ADD CHECK (of_id < '\\xee' OR done IS NULL)")
        ask("INSERT INTO more SELECT k FROM thing")
        row = run(declare(model="accounts.More", where=Q(done=None), update={"done": True}))
        assert row.set_aside.count() == ask("SELECT count(*) FROM more WHERE done IS NULL") > 0

    def test_keys_that_cannot_be_read_fail_it(self, skills, fill, declare, run):
        fill(10)
        row = control.get_or_create(declare(), skills.alias)
        row.set_aside.create(key=["no-uuid"], error="of a key that had another type")
        with pytest.raises(
            BackfillFailed, match=r"Skill has another kind of key .*“no-uuid” is not a valid UUID\.\n.* retry"
        ):
            run(row.name)
        assert control.get_or_create(row.name, skills.alias).status == Status.FAILED
