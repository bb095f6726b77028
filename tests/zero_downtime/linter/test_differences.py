"""Is it seen when the two halves of an operation disagree, and not where they only look different?"""

import pytest

from gotong_royong.zero_downtime.linter import judge
from tests.zero_downtime.linter.history import lint, trace

pytestmark = pytest.mark.once

HALVES = """operations = [migrations.RunSQL({sql!r}, migrations.RunSQL.noop, state_operations=[{state}])]"""
ADD = 'migrations.AddField("order", "code", {})'


def differences(tried, sql, state):
    (seen,) = trace(tried, HALVES.format(sql=sql, state=state))
    assert not seen.up.failure, seen.up.failure
    said = [one.message for one in judge(seen) if one.rule.id == "E306"]
    return [message.removeprefix("The migration tells Django one thing and PostgreSQL another: ") for message in said]


@pytest.mark.parametrize(
    ("sql", "field", "said"),
    [
        ("int", "models.IntegerField(db_index=True, null=True)", "column code of shop_order has no index, and "),
        ("int", "models.IntegerField(unique=True, null=True)", "code of shop_order is not unique, as model Order says"),
        ("bigint", "models.ForeignKey('shop.Customer', models.CASCADE, null=True, db_column='code', db_index=False)",
         "column code of shop_order has no foreign key, and field code is a ForeignKey"),
        ("int UNIQUE", "models.IntegerField(null=True)",
         "shop_order has the constraint shop_order_code_key, which model Order does not name"),
        ("int CHECK (code > 3)", "models.IntegerField(null=True)",
         "shop_order has the constraint shop_order_code_check, which model Order does not name"),
        ("bigint REFERENCES shop_customer", "models.BigIntegerField(null=True)",
         "shop_order has the constraint shop_order_code_fkey, which model Order does not name"),
        ("int; CREATE INDEX odd ON shop_order (code)", "models.IntegerField(null=True)",
         "shop_order has the index odd, which model Order does not name"),
    ],
    ids=["no index", "not unique", "no foreign key", "unique", "check", "foreign key", "index"],
)  # fmt: skip
def test_an_index_or_constraint_that_only_one_half_has(tried, sql, field, said):
    (found,) = differences(tried, f"ALTER TABLE shop_order ADD code {sql}", ADD.format(field))
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("sql", "field"),
    [
        ("int CHECK (code >= 0); CREATE INDEX odd ON shop_order (code)",
         "models.PositiveIntegerField(null=True, db_index=True)"),
        ("varchar(9) UNIQUE; CREATE INDEX odd ON shop_order (code varchar_pattern_ops)",
         "models.CharField(max_length=9, unique=True, null=True)"),
        ("bigint REFERENCES shop_customer; CREATE INDEX odd ON shop_order (code)",
         "models.ForeignKey('shop.Customer', models.CASCADE, null=True, db_column='code')"),
        ("bigint UNIQUE REFERENCES shop_customer",
         "models.OneToOneField('shop.Customer', models.CASCADE, null=True, db_column='code')"),
    ],
    ids=["positive", "text", "foreign key", "one to one"],
)  # fmt: skip
def test_what_django_makes_for_a_field_may_have_any_name(tried, sql, field):
    assert differences(tried, f"ALTER TABLE shop_order ADD code {sql}", ADD.format(field)) == []


def test_what_was_so_before_is_not_this_migration_s(tried):
    odd = "operations = [migrations.RunSQL('CREATE INDEX odd ON shop_order (number)', 'DROP INDEX odd')]"
    more = HALVES.format(sql="ALTER TABLE shop_order ADD code int", state=ADD.format("models.IntegerField(null=True)"))
    found = lint(tried, odd, more)
    assert "E306" not in found[0] | found[1]


def test_a_column_that_is_forgotten_takes_its_index_along(tried):
    sql = "ALTER TABLE shop_order ALTER customer_id DROP NOT NULL"
    assert differences(tried, sql, 'migrations.RemoveField("order", "customer")') == []


def test_what_points_to_a_renamed_table_is_looked_at_again(tried):
    rename = """atomic = False\noperations = [migrations.AlterModelTable("customer", "buyers")]"""
    (seen,) = trace(tried, rename)
    (key,) = [one for table in seen.catalog.values() for one in table.constraints.values() if one.kind == "f"]
    assert key.target == "buyers"
    assert lint(tried, rename) == [{"E201"}]


MADE = """
atomic = False
stage = Stage.POST_DEPLOY
operations = [
    migrations.RunSQL(
        "CREATE {} CONCURRENTLY IF NOT EXISTS made ON shop_order {}",
        "DROP INDEX CONCURRENTLY IF EXISTS made",
        state_operations=[{}],
    ),
]
"""
INDEX = 'migrations.AddIndex("order", models.Index(fields=["number"], condition=models.Q(number__gt=0), name="made"))'
UNIQUE = 'migrations.AddConstraint("order", models.UniqueConstraint(fields=["number"], include=["note"], name="made"))'


@pytest.mark.parametrize(
    ("kind", "body", "operation", "differs"),
    [
        ("INDEX", "(number) WHERE number > 0", INDEX, False),
        ("INDEX", "(number)", INDEX, True),
        ("INDEX", "(number) WHERE number > 1", INDEX, True),
        ("INDEX", "USING hash (number) WHERE number > 0", INDEX, True),
        ("INDEX", "(number) INCLUDE (note) WHERE number > 0", INDEX, True),
        ("UNIQUE INDEX", "(number) INCLUDE (note)", UNIQUE, False),
        ("UNIQUE INDEX", "(number)", UNIQUE, True),
        ("UNIQUE INDEX", "(number) INCLUDE (note) WHERE number > 0", UNIQUE, True),
    ],
)
def test_an_index_of_the_same_name_is_compared(tried, kind, body, operation, differs):
    (broken,) = lint(tried, MADE.format(kind, body, operation))
    assert ("E306" in broken) is differs
