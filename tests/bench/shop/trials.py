"""Which changes of a busy table are tried, and how is each written?

Stock Django and the peer run Django's operation, which is how both want it written. Ours runs it too where it is safe
under the lock budget, and where it is not, the safe statements that a migration of this project spells out. Nothing
makes a change of type safe in one step: there, what is tried is what ends it.
"""

from typing import NamedTuple

from django.db import models
from django.db.migrations import operations
from django.db.migrations.operations.base import Operation


class Trial(NamedTuple):
    operation: Operation
    safe: tuple[str, ...] = ()


TRIALS = {
    "nothing (the noise)": Trial(operations.SeparateDatabaseAndState()),
    "add an index": Trial(
        operations.AddIndex("order", models.Index(fields=["amount"], name="orders_amount")),
        safe=("CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_amount ON orders (amount)",),
    ),
    "add a field with db_default": Trial(
        operations.AddField("order", "rating", models.IntegerField(db_default=5)),
    ),
    "add a check": Trial(
        operations.AddConstraint(
            "order", models.CheckConstraint(condition=models.Q(amount__gte=0), name="orders_amount_check")
        ),
        safe=(
            "ALTER TABLE orders ADD CONSTRAINT orders_amount_check CHECK (amount >= 0) NOT VALID",
            "ALTER TABLE orders VALIDATE CONSTRAINT orders_amount_check",
        ),
    ),
    "add a foreign key": Trial(
        operations.AlterField(
            "order", "customer", models.ForeignKey("shop.Customer", on_delete=models.CASCADE, db_index=False)
        ),
        safe=(
            "ALTER TABLE orders ADD CONSTRAINT orders_customer_id_b7016332_fk_customers_id FOREIGN KEY (customer_id) "
            "REFERENCES customers DEFERRABLE INITIALLY DEFERRED NOT VALID",
            "ALTER TABLE orders VALIDATE CONSTRAINT orders_customer_id_b7016332_fk_customers_id",
        ),
    ),
    "set not null": Trial(
        operations.AlterField("order", "amount", models.IntegerField()),
        safe=(
            "ALTER TABLE orders ADD CONSTRAINT orders_amount_there CHECK (amount IS NOT NULL) NOT VALID",
            "ALTER TABLE orders VALIDATE CONSTRAINT orders_amount_there",
            "ALTER TABLE orders ALTER COLUMN amount SET NOT NULL",
            "ALTER TABLE orders DROP CONSTRAINT orders_amount_there",
        ),
    ),
    "drop a column": Trial(operations.RemoveField("order", "legacy")),
    "change a type (rewrites)": Trial(operations.AlterField("order", "amount", models.BigIntegerField(null=True))),
}
