"""Does a backfill do every row once, in whatever order it goes, and say what it cannot do?"""

import pytest
from django.db import connections, models
from django.db.models import F, Q, Value
from django.db.models.functions import Concat, Upper

from gotong_royong.zero_downtime.backfills import control, declarations, ranges, verification, worker
from gotong_royong.zero_downtime.backfills.worker import Worker
from gotong_royong.zero_downtime.exceptions import BackfillFailed, BackfillRefused, UnknownBackfill
from gotong_royong.zero_downtime.models import Backfill
from gotong_royong.zero_downtime.postgres import locks
from tests.zero_downtime.backfills.conftest import TWICE, UNDONE

Status = Backfill.Status


class TestOrders:
    @pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 30_000])
    def test_stripes_where_no_index_covers_what_is_written(self, fill, declare, run, ask, count):
        fill(count)
        row = run(declare())
        assert (row.status, row.order) == (Status.SUCCEEDED, "stripes")
        assert row.verified_at
        assert ask(UNDONE) == ask(TWICE) == 0
        assert control.progress(row).rows == ask("SELECT count(*) FROM written") == count

    @pytest.mark.parametrize("on", ["(lower(description))", "(name) WHERE description IS NULL", "(description)"])
    def test_plain_physical_order_where_an_index_names_what_is_written(self, fill, declare, run, ask, on):
        fill(5_000)
        ask(f"CREATE INDEX ON skills {on}")
        row = run(declare())
        assert (row.status, row.order) == (Status.SUCCEEDED, "physical")
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_python_in_physical_order(self, fill, declare, run, ask):
        def process(self, batch):
            for skill in batch:
                skill.description = skill.name.upper()
                skill.save(update_fields=["description"])

        fill(3_000)
        row = run(declare(process=process))
        assert (row.status, row.order) == (Status.SUCCEEDED, "physical")
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_it_is_known_as_a_worker_for_as_long_as_it_works(self, fill, declare, run, skills):
        known = set()

        def process(self, batch):
            connection = connections[skills.alias]
            known.add(connection.connection.info.backend_pid in locks.holders(connection, locks.WORKER))
            batch.update(description="done")

        fill(10)
        run(declare(process=process), workers=2)
        assert known == {True}
        assert locks.holders(skills, locks.WORKER) == []

    def test_order_of_keys_where_sql_cannot_say_what_is_done(self, fill, declare, run, ask, monkeypatch):
        monkeypatch.setattr(ranges, "BLOCKS", 64)
        fill(20_000)
        row = run(declare(where=None), workers=2)
        assert (row.status, row.order) == (Status.SUCCEEDED, "keys")
        assert row.ranges.filter(number__gt=1).count() > 3
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_the_order_of_keys_that_are_numbers(self, skills, declare, run, ask, model, monkeypatch):
        monkeypatch.setattr(ranges, "BLOCKS", 32)
        model("Thing", skills, v=models.IntegerField(), filler=models.TextField())
        ask("INSERT INTO thing (v, filler) SELECT 0, repeat('x', 200) FROM generate_series(1, 20000); ANALYZE thing")
        row = run(declare(model="accounts.Thing", where=None, update={"v": F("v") + 1}), workers=2)
        assert (row.status, row.order) == (Status.SUCCEEDED, "keys")
        uppers = row.ranges.filter(number__gt=0).order_by("number").values_list("upper", flat=True)
        bounds = [int(upper[0]) for upper in uppers if upper]
        assert len(bounds) > 3
        assert bounds == sorted(bounds)
        assert ask("SELECT count(*) FROM thing WHERE v = 1") == 20_000

    def test_order_of_keys_where_it_asks_other_tables(self, fill, declare, run, ask):
        fill(3_000)
        row = run(declare(where=Q(description=None, users__isnull=True)))
        assert (row.status, row.order) == (Status.SUCCEEDED, "keys")
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_composite_keys(self, fill, declare, run, ask, monkeypatch):
        monkeypatch.setattr(ranges, "BLOCKS", 16)
        fill(5_000)
        ask("INSERT INTO users (username, email, password_hash) SELECT i, i, '!' FROM generate_series(1, 2) i")
        ask("INSERT INTO user_skills (user_id, skill_id) SELECT u.id, s.id FROM users u, skills s; ANALYZE user_skills")
        name = declare(
            model="accounts.UserSkill", where=None, update={"endorsements_count": F("endorsements_count") + 1}
        )
        assert run(name, workers=2).order == "keys"
        assert ask("SELECT count(*) FROM user_skills WHERE endorsements_count <> 1") == 0

    @pytest.mark.parametrize("python", [False, True])
    def test_partitions_one_by_one(self, fill, declare, run, ask, python):
        ask(
            "ALTER TABLE skills RENAME TO old; CREATE TABLE skills (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (id)"
        )
        for part in range(3):
            ask(f'CREATE TABLE "Part {part}" PARTITION OF skills FOR VALUES WITH (MODULUS 3, REMAINDER {part})')
        fill(6_000)
        how = {"process": lambda self, batch: batch.update(description=Upper("name"))} if python else {}
        row = run(declare(**how), workers=2)
        assert (row.status, row.order) == (Status.SUCCEEDED, "physical" if python else "stripes")
        assert set(row.ranges.values_list("partition", flat=True)) == {"", '"Part 0"', '"Part 1"', '"Part 2"'}
        assert ask(UNDONE) == 0


@pytest.fixture
def replica(skills, settings):
    """A replica that cannot be reached, from which a router of the project has all models read."""

    class Router:
        def db_for_read(self, model, **hints):
            return "replica"

    connections.databases["replica"] = {**skills.settings_dict, "HOST": "127.0.0.1", "PORT": "1"}
    settings.DATABASE_ROUTERS, settings.ZERO_DOWNTIME_PATIENCE = [Router()], 1.0
    yield
    connections["replica"].close()
    del connections["replica"], connections.databases["replica"]


@pytest.mark.usefixtures("replica")
def test_what_a_router_says_of_reads_leaves_a_backfill_in_its_own_database(skills, fill, declare, run, ask):
    fill(1_500)
    ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description NOT LIKE '%77')")
    name = run(declare()).name
    ask("ALTER TABLE skills DROP CONSTRAINT no_seven")
    ways = ("retry", "pause", "resume", "cancel", "retry")
    statuses = (Status.PENDING, Status.PAUSED, Status.PENDING, Status.CANCELED, Status.PENDING)
    for way, status in zip(ways, statuses, strict=True):
        row = Backfill.objects.using(skills.alias).get(name=name)
        control.apply(row, way, "somebody")
        assert (row.status, row._state.db) == (status, skills.alias)
    row = run(name)
    assert (row.status, row._state.db) == (Status.SUCCEEDED, skills.alias)
    assert ask(UNDONE) == ask(TWICE) == 0


class TestFailing:
    @pytest.mark.parametrize("count", [100, 5_000])
    def test_rows_that_cannot_be_done_are_set_aside(self, fill, declare, run, ask, count):
        fill(count)
        ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (description NOT LIKE '%77')")
        row = run(declare())
        bad = ask("SELECT count(*) FROM skills WHERE name LIKE '%77'")
        assert row.status == Status.FAILED
        assert row.error.startswith(f"{bad} row")
        assert ask(UNDONE) == row.set_aside.count() == bad
        assert 'violates check constraint "no_seven"' in row.set_aside.first().error
        ask("ALTER TABLE skills DROP CONSTRAINT no_seven")
        control.retry(row)
        row = run(row.name)
        assert (row.status, row.set_aside.count(), row.error) == (Status.SUCCEEDED, 0, "")
        assert ask(UNDONE) == ask(TWICE) == 0

    def test_python_that_raises_for_a_row(self, fill, declare, run, ask):
        def process(self, batch):
            for skill in batch:
                if skill.name.endswith("13"):
                    raise LookupError("No description to be had.")
            batch.update(description=Upper("name"))

        fill(1_500)
        row = run(declare(process=process))
        assert row.status == Status.FAILED
        assert row.set_aside.count() == 15
        assert row.set_aside.first().error == "LookupError: No description to be had."

    def test_what_is_only_checked_at_commit_is_of_its_row(self, fill, declare, run, ask):
        fill(50)
        ask("ALTER TABLE skills ADD CONSTRAINT once UNIQUE (description) DEFERRABLE INITIALLY DEFERRED")
        ask("UPDATE skills SET name = 'SKILL 1 7' WHERE name = 'skill 1 8'; TRUNCATE written")
        row = run(declare())
        assert (row.status, row.set_aside.count()) == (Status.FAILED, 1)

    def test_more_failing_rows_than_anybody_would_read(self, fill, declare, run, monkeypatch):
        monkeypatch.setattr("gotong_royong.zero_downtime.backfills.changes.MOST_SET_ASIDE", 5)
        fill(100)
        with pytest.raises(BackfillFailed, match="More than 5 rows cannot be changed; the last row"):
            run(declare(process=lambda self, batch: 1 / 0))

    def test_a_where_that_never_becomes_false(self, fill, declare, run, ask):
        fill(5_000)
        with pytest.raises(BackfillFailed, match=r"The where of accounts.trial is still true for row [0-9a-f-]{36}"):
            run(declare(where=Q(name__startswith="skill")))
        assert ask("SELECT count(*) FROM written") == 0

    @pytest.mark.parametrize(
        ("definition", "kept"),
        [
            (
                "CREATE UNIQUE INDEX once ON skills (category)",
                'duplicate key value violates unique constraint "once"',
            ),
            (
                "ALTER TABLE skills ADD CONSTRAINT ok CHECK (category IS NULL OR name LIKE '% 1')",
                'new row for relation "skills" violates check constraint "ok"',
            ),
        ],
        ids=["unique", "check"],
    )
    def test_what_is_kept_of_an_error_quotes_no_row(self, fill, declare, run, ask, definition, kept):
        """PostgreSQL's detail does, and who may see a backfill may not see every column of its table."""
        fill(2)
        ask(definition)
        row = run(declare(where=Q(category=None), update={"category": Value("secret")}))
        assert (row.status, row.error[:5]) == (Status.FAILED, "1 row")
        assert row.set_aside.get().error == f"IntegrityError: {kept}"

    def test_a_column_that_is_gone(self, fill, declare, run, ask, skills):
        fill(10)
        ask("ALTER TABLE skills DROP COLUMN category")
        name = declare(where=Q(category=None))
        with pytest.raises(BackfillFailed, match=r"column skills.category does not exist.*\n.*retry accounts.trial"):
            run(name)
        row = control.get_or_create(name, skills.alias)
        assert (row.status, row.error) == (Status.FAILED, "ProgrammingError: column skills.category does not exist")

    def test_a_table_that_is_gone(self, declare, run, ask):
        ask("DROP TABLE skills CASCADE")
        with pytest.raises(BackfillFailed, match='relation "skills" does not exist'):
            run(declare())

    def test_a_partition_that_is_dropped_in_the_middle(self, fill, declare, ask, skills):
        ask("ALTER TABLE skills RENAME TO old")
        ask("CREATE TABLE skills (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (id)")
        for part in range(3):
            ask(f"CREATE TABLE part{part} PARTITION OF skills FOR VALUES WITH (MODULUS 3, REMAINDER {part})")
        fill(6_000)
        row = control.get_or_create(declare(), skills.alias)

        def drop():
            if row.ranges.filter(number__gt=0, finished_at=None).exists():
                ask("DROP TABLE IF EXISTS part2")

        assert Worker(row, stop=drop).run().status == Status.SUCCEEDED
        assert ask("SELECT to_regclass('part2')") is None
        assert ask(UNDONE) == 0

    def test_rows_that_fail_are_looked_for_among_few(self, fill, declare, run, ask):
        """All of them are locked meanwhile."""
        fill(20_000)
        for table in ("written", "zero_downtime_set_aside"):
            ask(f"ALTER TABLE {table} ADD transaction xid8 DEFAULT pg_current_xact_id()")
        ask("ALTER TABLE skills ADD CONSTRAINT few CHECK (description NOT LIKE '%999')")
        row = run(declare())
        assert row.set_aside.count() == 20
        assert (
            0
            < ask("""
            SELECT max(count) FROM (
                SELECT count(*) FROM written WHERE transaction IN (SELECT transaction FROM zero_downtime_set_aside)
                GROUP BY transaction
            ) AS careful
        """)
            < 250
        )
        assert ask(UNDONE) == 20

    def test_a_row_set_aside_that_somebody_else_has_done_is_no_failure(self, fill, declare, ask, skills):
        fill(3)
        row = control.get_or_create(declare(), skills.alias)
        for place in range(3):
            row.set_aside.create(key=[ask(f"SELECT id::text FROM skills OFFSET {place} LIMIT 1")], error="It was.")
        ask("DELETE FROM skills WHERE id IN (SELECT id FROM skills OFFSET 2 LIMIT 1)")
        ask("UPDATE skills SET description = 'mine' WHERE id IN (SELECT id FROM skills OFFSET 1 LIMIT 1)")
        changes = Worker(row).changes
        changes.leave_alone_what_is_set_aside()
        assert changes.given_up() == 1
        assert [each.key for each in row.set_aside.all()] == [[ask("SELECT id::text FROM skills LIMIT 1")]]

    def test_a_declaration_that_has_changed_while_it_was_paused(self, fill, declare, run, ask, skills):
        fill(10)
        row = control.get_or_create(declare(), skills.alias)
        control.become(row, Status.RUNNING, order="stripes", sweep=1)
        control.pause(row)
        control.resume(row)
        name = declare(where=None)
        with pytest.raises(BackfillFailed, match=r"begun in the order of stripes, which .* no longer allows.\n.*retry"):
            run(name)
        assert ask("SELECT count(*) FROM written") == 0
        row.refresh_from_db()
        assert (row.status, row.error[-23:]) == (Status.FAILED, "table no longer allows.")
        control.retry(row)
        assert run(name).status == Status.SUCCEEDED

    def test_a_declaration_that_has_changed_while_it_was_running(self, fill, declare, run, ask, skills):
        """Its worker was killed, and the next one has other code."""
        fill(10)
        row = control.get_or_create(declare(), skills.alias)
        control.become(row, Status.RUNNING, order="stripes", sweep=1)
        row.ranges.create(sweep=1, number=1, lower=0, upper=1)
        with pytest.raises(BackfillFailed, match=r"begun in the order of stripes, which .* no longer allows."):
            run(declare(where=None))
        assert ask("SELECT count(*) FROM written") == 0

    def test_unknown(self, run):
        with pytest.raises(UnknownBackfill, match=r"Did you mean accounts.populate_markov_user_ids\?"):
            run("accounts.populate_markov_user_id")

    def test_neither_update_nor_process(self, declare, run):
        with pytest.raises(BackfillRefused, match="must have either update or process"):
            run(declare(update={}))


@pytest.mark.once
class TestRetryWithoutWhere:
    """Nobody can say which rows are done, so none of them may be done a second time."""

    ONCE = "SELECT count(*) FROM skills WHERE category = name"
    NOT_ONCE = "SELECT count(*) FROM skills WHERE category <> name"

    @pytest.fixture
    def name(self, fill, declare, ask):
        """A backfill whose second time would be seen."""
        fill(300)
        ask("UPDATE skills SET category = ''")
        return declare(where=None, update={"category": Concat(F("category"), F("name"))})

    def test_only_the_rows_set_aside_are_done(self, name, run, ask, monkeypatch):
        monkeypatch.setattr(verification, "LEFT", 5)  # which are no reason to go through the table again
        ask("ALTER TABLE skills ADD CONSTRAINT few CHECK (category NOT LIKE '%77' AND category NOT LIKE '%88')")
        row = run(name)
        assert (row.status, row.set_aside.count(), ask(self.ONCE)) == (Status.FAILED, 6, 294)
        ask("ALTER TABLE skills DROP CONSTRAINT few, ADD CONSTRAINT few CHECK (category NOT LIKE '%177')")
        ask("DELETE FROM skills WHERE name LIKE '%277'")
        for _ in range(verification.MOST_SWEEPS + 1):
            control.retry(row)
            row = run(name)
            assert (row.status, row.set_aside.count(), ask(self.ONCE)) == (Status.FAILED, 1, 298)
            assert row.error.startswith("1 row could not be changed")
        ask("ALTER TABLE skills DROP CONSTRAINT few")
        control.retry(row)
        row = run(name)
        assert (row.status, row.set_aside.count(), row.error) == (Status.SUCCEEDED, 0, "")
        assert (ask(self.ONCE), ask(self.NOT_ONCE)) == (299, 0)

    @pytest.mark.parametrize("count", [1, 1_500])
    def test_what_was_canceled_in_the_middle_goes_on_there(self, name, fill, run, ask, skills, monkeypatch, count):
        monkeypatch.setattr(ranges, "BLOCKS", 8)
        fill(count)
        ask("UPDATE skills SET category = ''")
        ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (category NOT LIKE '%7')")
        tired = worker.Worker(control.get_or_create(name, skills.alias), stop=lambda: ask(self.ONCE) > 100)
        tired.batches._sizes["keys"].now = 10
        tired.run()
        control.cancel(row := control.get_or_create(name, skills.alias))
        assert 100 < ask(self.ONCE) < 200
        control.retry(row)
        row = run(name, workers=2)
        seven = ask("SELECT count(*) FROM skills WHERE name LIKE '%7'")
        assert (row.status, row.set_aside.count()) == (Status.FAILED, seven)
        ask("ALTER TABLE skills DROP CONSTRAINT no_seven")
        control.retry(row)
        assert run(name).status == Status.SUCCEEDED
        assert (ask(self.ONCE), ask(self.NOT_ONCE)) == (300 + count, 0)

    def test_one_that_succeeded_begins_anew(self, name, run, ask):
        row = run(name)
        control.retry(row)
        assert run(name).status == Status.SUCCEEDED
        assert ask("SELECT count(*) FROM skills WHERE category = name || name") == 300

    def test_one_that_the_code_does_not_declare_stays_as_it_is(self, name, run, ask, monkeypatch):
        ask("ALTER TABLE skills ADD CONSTRAINT no_seven CHECK (category NOT LIKE '%77')")
        row = run(name)
        monkeypatch.delitem(declarations.DECLARED, name)
        with pytest.raises(UnknownBackfill, match=f"No backfill {name} is declared"):
            control.retry(row)
        row.refresh_from_db()
        assert (row.status, row.set_aside.count()) == (Status.FAILED, 3)
