"""What does a migration look like that breaks a rule, or does not? What the examples of several rules have in common.

Most are bodies of migrations, which only what stands before them makes bad or good.
"""

from textwrap import indent

NEXT = "\n# the next one\n"
NOT_ATOMIC = "atomic = False\n"
POST_DEPLOY = "stage = Stage.POST_DEPLOY\n"


def operations(*written: str) -> str:
    """Return the body of a migration that has these operations."""
    return "\noperations = [\n" + "".join(indent(f"{one},\n", "    ") for one in written) + "]\n"


SEQUENCE = operations(
    'migrations.RunSQL("CREATE SEQUENCE IF NOT EXISTS order_numbers", "DROP SEQUENCE IF EXISTS order_numbers")'
)
PAID = """
operations = [
    migrations.RunSQL(
        "ALTER TABLE shop_order ADD COLUMN IF NOT EXISTS paid boolean",
        "ALTER TABLE shop_order DROP COLUMN IF EXISTS paid",
    ),
]
"""
ADD_PAID = operations('migrations.AddField("order", "paid", models.BooleanField(null=True))')
DB_DEFAULT = operations('migrations.AddField("order", "paid", models.BooleanField(db_default=False))')
DROP_CREATED = """\
migrations.RunSQL(
    sql="DROP INDEX CONCURRENTLY IF EXISTS shop_order_created",
    reverse_sql="CREATE INDEX CONCURRENTLY IF NOT EXISTS shop_order_created ON shop_order (created)",
    state_operations=[migrations.RemoveIndex("order", "shop_order_created")],
)"""
TWO_TABLES = operations(
    'migrations.AddField("order", "paid", models.BooleanField(null=True))',
    'migrations.AddField("customer", "vip", models.BooleanField(null=True))',
)
UNIQUE_INDEX = """
operations = [
    migrations.RunSQL(
        sql="CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS order_number ON shop_order (number)",
        reverse_sql="DROP INDEX CONCURRENTLY IF EXISTS order_number",
        state_operations=[
            migrations.AddConstraint("order", models.UniqueConstraint(fields=["number"], name="order_number")),
        ],
    ),
]
"""
UNIQUE_CONSTRAINT = """
operations = [
    migrations.RunSQL(
        sql=[
            "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS order_number_idx ON shop_order (number)",
            "ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS order_number, "
            "ADD CONSTRAINT order_number UNIQUE USING INDEX order_number_idx",
        ],
        reverse_sql="ALTER TABLE shop_order DROP CONSTRAINT IF EXISTS order_number",
        state_operations=[
            migrations.AddConstraint("order", models.UniqueConstraint(fields=["number"], name="order_number")),
        ],
    ),
]
"""
EXCLUSION = """\
migrations.RunSQL(
    "ALTER TABLE shop_order ADD CONSTRAINT order_created EXCLUDE (created WITH =)",
    "ALTER TABLE shop_order DROP CONSTRAINT order_created",
)"""
NOT_VALID = """\
AddConstraintNotValid(
    "order", models.CheckConstraint(condition=models.Q(number__gt=0), name="number_is_positive")
)"""
CHECK_NOT_VALID = operations(NOT_VALID)
NOT_VALID_AND_VALIDATE = operations(NOT_VALID, 'ValidateConstraint("order", "number_is_positive")')
