"""Which rows does a batch have, and by which statements are they changed?

In physical order a batch is a range of the table's blocks, which PostgreSQL reads by a TID range scan. If no index
covers a written column, the batch goes in stripes: each pass changes some rows of every block, and the next pass writes
into the space that it frees. In the order of keys a batch is a range of keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, connections, models
from django.db.models.expressions import Col, RawSQL
from django.db.models.functions import Cast
from django.db.models.sql import Query, UpdateQuery

from ..exceptions import BackfillFailed
from .declarations import BackfillDeclaration
from .ranges import LEAVES, key_fields

STRIPES, PHYSICAL, KEYS = "stripes", "physical", "keys"
PASSES = 8  # over the same blocks in stripes; a power of two

# No HOT update is possible for a column of an index, or one that its expressions or condition name
# (https://www.postgresql.org/docs/current/storage-hot.html).
INDEXED = f"""
    SELECT EXISTS (
        SELECT FROM ({LEAVES}) AS leaves JOIN pg_index ON indrelid = leaves.oid
        JOIN pg_attribute ON attrelid = indrelid AND attname = ANY(%(columns)s)
        WHERE attnum = ANY(indkey) OR EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = indexrelid
                                        AND refclassid = 'pg_class'::regclass AND refobjid = indrelid
                                        AND refobjsubid = attnum
        )
    )
"""  # noqa: S608

# Whether a batch can be a range of blocks. A partition is addressed directly, under the alias of its table: privileges
# and policies of the table do not apply to it, and the alias cannot hold a schema. An inheriting table has blocks of
# its own, but an update of the table reaches them.
PLAIN = f"""
    SELECT count(*) > 0 AND bool_and(leaves.relkind = 'r' AND (leaves.oid = whole.oid OR (
        leaves.relispartition AND NOT leaves.relrowsecurity AND NOT whole.relrowsecurity
        AND has_table_privilege(leaves.oid, 'SELECT') AND has_table_privilege(leaves.oid, 'UPDATE')
        AND has_schema_privilege(leaves.relnamespace, 'USAGE') AND %(table)s NOT LIKE '%%"."%%'
    )))
    FROM ({LEAVES}) AS leaves, pg_class AS whole WHERE whole.oid = to_regclass(%(table)s)
"""  # noqa: S608

TID: "models.Field[Any, Any]" = models.Field()
TID.set_attributes_from_name("ctid")


class Blocks(NamedTuple):
    """The blocks of a table from ``lower`` to before ``upper``, or one stripe of their rows."""

    lower: Any
    upper: Any
    stripe: Any = None

    @property
    def tids(self) -> list[Any]:
        """The ctid of the first row of the first block, and of the block after the last."""
        return [at if isinstance(at, Place) else f"({at},0)" for at in self[:2]]


class Place(Enum):
    """A placeholder for a batch's value in a statement that is compiled once for all batches."""

    LOWER, UPPER, STRIPE = range(3)


@dataclass(frozen=True)
class Work:
    """What to change in which database; ``set_aside`` holds the keys of the rows to leave alone."""

    declaration: type[BackfillDeclaration]
    model: type[models.Model]
    alias: str = DEFAULT_DB_ALIAS
    set_aside: tuple[Any, ...] = ()

    @cached_property
    def rows(self) -> models.QuerySet[Any]:
        """All rows of the model. Its managers are not used, because they may hide rows."""
        return models.QuerySet(self.model, using=self.alias)

    @property
    def to_do(self) -> models.QuerySet[Any]:
        """The rows that are still to do, each once, in no order."""
        rows = self.rows.order_by()
        if self.declaration.where is not None:
            rows = rows.filter(self.declaration.where)
        fields = [getattr(join, "join_field", None) for join in rows.query.alias_map.values()]
        if any(getattr(field, "multiple", False) for field in fields):  # such a join repeats rows
            rows = rows.distinct()
        return rows.exclude(pk__in=self.set_aside) if self.set_aside else rows

    @cached_property
    def parents(self) -> list[type[models.Model]]:
        """The parent models (multi-table inheritance), the topmost first."""
        return list(reversed(self.model._meta.concrete_model._meta.all_parents))  # type: ignore[union-attr]

    @cached_property
    def is_of_one_table(self) -> bool:
        """Whether ``where`` reads only the row itself, and the row is in one table.

        Then one statement can find and change the rows: after waiting for a row lock, PostgreSQL evaluates the
        condition again on the new row. It does not read joined rows and subqueries again
        (https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED).
        """
        query = self.to_do.query
        return query.count_active_tables() <= 1 and not self.parents and not _asks_more(query.where)

    @cached_property
    def updates(self) -> dict[tuple[str, bool], tuple[str, list[Any]]]:
        """The compiled statements that change the rows of some blocks."""
        return {}

    def order(self) -> str:
        """Return the cheapest order that cannot miss a row."""
        if self.declaration.where is None or self.to_do.query.count_active_tables() > 1:
            return KEYS
        connection = connections[self.alias]
        table = connection.ops.quote_name(self.model._meta.db_table)
        fields: list[Any] = [self.model._meta.get_field(name) for name in self.declaration.update]
        columns = [field.column for field in fields]
        with connection.cursor() as cursor:
            cursor.execute(PLAIN, {"table": table})
            if not cursor.fetchone()[0]:
                return KEYS
            if not columns:
                return PHYSICAL
            cursor.execute(INDEXED, {"table": table, "columns": columns})
            return PHYSICAL if cursor.fetchone()[0] else STRIPES


def _asks_more(expression: Any) -> bool:
    """Whether the expression contains a query, or raw SQL that may be one."""
    if isinstance(expression, Query | RawSQL):
        return True
    return hasattr(expression, "get_source_expressions") and any(map(_asks_more, expression.get_source_expressions()))


def batches_in(lower: int, upper: int, *, striped: bool) -> list[Blocks]:
    """Return the batches that go through these blocks.

    Each pass goes through one half, then the other. So a batch lies between the pass that frees space in a block and
    the pass that uses it, and an older snapshot of another worker no longer keeps that space.
    """
    if not striped:
        return [Blocks(lower, upper)]
    middle = (lower + upper) // 2
    halves = [(lower, middle), (middle, upper)] if middle > lower else [(lower, upper)]
    return [Blocks(start, end, stripe) for stripe in range(PASSES) for start, end in halves]


class InBlocks(models.Func):
    """The condition that a row is in some blocks."""

    output_field = models.BooleanField()

    def __init__(self, model: type[models.Model], blocks: Blocks, **extra: Any) -> None:
        super().__init__(Col(model._meta.db_table, TID), **extra)
        self.blocks = blocks

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **extra: Any) -> Any:
        ctid, _ = compiler.compile(self.get_source_expressions()[0])
        condition = f"{ctid} >= %s::tid AND {ctid} < %s::tid"
        if self.blocks.stripe is None:
            return f"({condition})", [*self.blocks.tids]
        return f"({condition} AND hashtid({ctid}) & {PASSES - 1} = %s)", [*self.blocks.tids, self.blocks.stripe]


def in_keys(model: type[models.Model], lower: Sequence[str] | None, upper: Sequence[str] | None) -> models.Q:
    """Return the condition for keys after ``lower`` up to ``upper``; None is no bound."""
    columns = [Col(model._meta.db_table, field) for field in key_fields(model)]
    condition = models.Q()
    for sign, bound in ((">", lower), ("<=", upper)):
        if bound is not None:
            condition &= models.Q(KeyBound(*columns, bound=bound, template=f"(%(expressions)s) {sign} "))
    return condition


class KeyBound(models.Func):
    """Compares a key of one or more columns with values; PostgreSQL takes their types from the columns."""

    output_field = models.BooleanField()

    def __init__(self, *columns: Any, bound: Sequence[str], **extra: Any) -> None:
        super().__init__(*columns, **extra)
        self.bound = list(bound)

    def as_sql(self, compiler: Any, connection: Any, *args: Any, **extra: Any) -> Any:
        sql, parameters = super().as_sql(compiler, connection, *args, **extra)
        return f"{sql}({', '.join(['%s'] * len(self.bound))})", [*parameters, *self.bound]


def key_at(work: Work, lower: Sequence[str] | None, upper: Sequence[str] | None, size: int) -> list[str] | None:
    """Return the last key of a batch of ``size`` rows; None if there are fewer rows."""
    fields = key_fields(work.model)
    texts = {
        f"_key_{place}": Cast(Col(work.model._meta.db_table, field), models.TextField())
        for place, field in enumerate(fields)
    }
    rows = work.rows.filter(in_keys(work.model, lower, upper)).order_by("pk").annotate(**texts)
    return next((list(row) for row in rows.values_list(*texts)[size - 1 : size]), None)


def change(work: Work, condition: Any, partition: str = "") -> int:
    """Change the rows to do that meet the condition or are in the ``Blocks``; return their number.

    Locks them and their rows in the tables of parent models: FOR NO KEY UPDATE, or FOR UPDATE if a column of a unique
    index changes (https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-ROWS). Locks no joined rows.

    Raises:
        BackfillFailed: if ``where`` is still true for a row after ``process``, or after an update of several tables.
    """
    if work.declaration.has_process() or not work.is_of_one_table:
        if keys := keys_of(work, condition, partition):
            change_keys(work, keys)
        return len(keys)
    if not isinstance(condition, Blocks):
        return work.to_do.filter(condition).update(**work.declaration.update)
    sql, parameters = _update_of_blocks(work, partition, striped=condition.stripe is not None)
    values = [*condition.tids, condition.stripe]
    with connections[work.alias].cursor() as cursor:
        cursor.execute(sql, [values[one.value] if isinstance(one, Place) else one for one in parameters])
        return int(cursor.rowcount)


def _update_of_blocks(work: Work, partition: str, *, striped: bool) -> tuple[str, list[Any]]:
    """Return the statement that changes the rows of some blocks, with ``Place``s among its parameters.

    Compiling it for every batch would take as long as PostgreSQL takes for a hundred rows.
    """
    if (partition, striped) not in work.updates:
        blocks = Blocks(Place.LOWER, Place.UPPER, Place.STRIPE if striped else None)
        query = work.to_do.filter(InBlocks(work.model, blocks)).query.chain(UpdateQuery)
        query.add_update_values(dict(work.declaration.update))  # type: ignore[attr-defined]
        work.updates[partition, striped] = _written(work, query, partition, "UPDATE {} ", "UPDATE {} AS {} ")
    return work.updates[partition, striped]


def keys_of(work: Work, condition: Any, partition: str = "", *, lock: bool = True) -> list[Any]:
    """Return the keys of the rows to do that meet the condition or are in the ``Blocks``.

    With ``lock``, locks these rows and their rows in the tables of parent models (FOR NO KEY UPDATE).
    """
    if lock and not work.is_of_one_table:
        return _locked(work, keys_of(work, condition, partition, lock=False))
    here = InBlocks(work.model, condition) if isinstance(condition, Blocks) else condition
    rows = work.to_do.filter(here).order_by()
    if lock:
        rows = rows.select_for_update(no_key=True)
    if not partition:
        return list(rows.values_list("pk", flat=True))
    columns = [field.attname for field in key_fields(work.model)]
    query = rows.values_list(*columns).query
    sql, parameters = _written(work, query, partition, " FROM {} ", " FROM {} AS {} ")
    compiler = query.get_compiler(work.alias)
    compiler.setup_query()
    converters = compiler.get_converters([expression for expression, *_ in compiler.select])
    with connections[work.alias].cursor() as cursor:
        cursor.execute(sql, parameters)
        found = map(tuple, compiler.apply_converters(cursor.fetchall(), converters))
        return [row if len(columns) > 1 else row[0] for row in found]


def read(work: Work, blocks: Blocks, partition: str = "") -> None:
    """Read all rows in these blocks (ACCESS SHARE on the table, no row lock)."""
    connection = connections[work.alias]
    table = partition or connection.ops.quote_name(work.model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table} WHERE ctid >= %s::tid AND ctid < %s::tid", blocks.tids)  # noqa: S608


def _written(work: Work, query: Any, partition: str, here: str, there: str) -> tuple[str, list[Any]]:
    """Return the SQL of a query of one table, or of one of its partitions under the table's name."""
    sql, parameters = query.get_compiler(work.alias).as_sql()
    table = connections[work.alias].ops.quote_name(work.model._meta.db_table)
    if partition:
        sql = sql.replace(here.format(table), there.format(partition, table), 1)
    return sql, list(parameters)


def unlocked_keys(work: Work, keys: Sequence[Any]) -> list[Any]:
    """Lock the rows to do that no other session has locked (FOR NO KEY UPDATE); return their keys.

    Locks their rows in the tables of parent models, too.
    """
    return _locked(work, keys, skip_locked=True)


def _locked(work: Work, keys: Sequence[Any], *, skip_locked: bool = False) -> list[Any]:
    """Lock the rows with these keys in all of their tables; return the keys of those that are still to do."""

    def locked(rows: models.QuerySet[Any]) -> list[Any]:
        rows = rows.order_by().select_for_update(no_key=True, skip_locked=skip_locked)
        return list(rows.values_list("pk", flat=True))

    if work.is_of_one_table:
        return locked(work.to_do.filter(pk__in=keys))
    rows = work.rows.filter(pk__in=keys)
    ours = models.Q()
    for parent in work.parents:
        name = parent._meta.pk.name
        inherited: models.QuerySet[Any] = models.QuerySet(parent, using=work.alias)
        ours &= models.Q(**{f"{name}__in": locked(inherited.filter(pk__in=rows.values(name)))})
    ours &= models.Q(pk__in=locked(rows))
    return list(work.to_do.filter(ours).order_by().values_list("pk", flat=True))


def change_keys(work: Work, keys: Sequence[Any]) -> None:
    """Change the rows with these keys, which this transaction has locked.

    Raises:
        BackfillFailed: if ``where`` is still true for one of them.
    """
    declaration = work.declaration
    declaration().process(work.rows.filter(pk__in=keys))
    if declaration.where is not None:
        for key in work.to_do.filter(pk__in=keys).values_list("pk", flat=True)[:1]:
            did = "process" if declaration.has_process() else "update"
            told = ", ".join(map(str, as_text(work.model, key)))
            raise BackfillFailed(
                f"The where of {declaration.name} is still true for row {told} after its {did}, so it would go on for "
                "ever. This batch is rolled back."
            )


def as_text(model: type[models.Model], key: Any) -> list[Any]:
    """Return the values of a key as fixtures hold them: as texts, except JSON."""
    values = key if isinstance(key, tuple) else (key,)
    pairs = zip(_key_values(model), values, strict=True)
    return [field.value_to_string(SimpleNamespace(**{field.attname: value})) for field, value in pairs]


def from_text(model: type[models.Model], texts: Sequence[Any]) -> Any:
    """Return the key whose values ``as_text`` gave; a tuple for a composite key."""
    values = tuple(field.to_python(text) for field, text in zip(_key_values(model), texts, strict=True))
    return values if len(values) > 1 else values[0]


def _key_values(model: type[models.Model]) -> Iterator[Any]:
    """Yield each field of the key; for a foreign key, the field that it refers to."""
    for field in key_fields(model):
        while field.remote_field:
            field = field.target_field
        yield field
