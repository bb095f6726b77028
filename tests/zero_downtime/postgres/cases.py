"""A library's tables, and the changes that migrations make to them."""

from django.contrib.postgres import operations as postgres
from django.contrib.postgres.constraints import ExclusionConstraint
from django.db import models
from django.db.migrations import operations
from django.db.models.functions import Lower, Now


def create(name, *fields, **options):
    return operations.CreateModel(name, [("id", models.BigAutoField(primary_key=True)), *fields], options=options)


def foreign_key(to, **options):
    return models.ForeignKey(to, models.CASCADE, **options)


INDEX = models.Index(fields=["born"], name="idx")
BASE = [
    create(
        "Author", ("name", models.CharField(max_length=50)), ("born", models.IntegerField(null=True)), db_table="author"
    ),
    create(
        "Book",
        ("title", models.CharField(max_length=50, db_index=True)),
        ("blurb", models.TextField(null=True)),
        ("editor", foreign_key("library.Author", null=True, related_name="edited")),
        ("pages", models.IntegerField(default=1)),
        ("note", models.TextField(null=True)),
        ("author", foreign_key("library.Author")),
        ("isbn", models.CharField(max_length=13, null=True, unique=True)),
        ("shelf", models.PositiveIntegerField(null=True, db_default=3)),
        db_table="book",
        indexes=[models.Index(fields=["pages"], name="book_pages")],
        constraints=[
            models.CheckConstraint(condition=models.Q(pages__gte=0), name="book_has_pages"),
            models.UniqueConstraint(fields=["title", "pages"], name="book_unique"),
            models.UniqueConstraint(Lower("note"), name="book_note_unique"),
        ],
        unique_together={("title", "shelf")},
    ),
    create("Shop", ("name", models.TextField()), ("books", models.ManyToManyField("library.Book"))),
]
BASE_ROWS = """
    INSERT INTO author (name, born) VALUES ('Pramoedya', 1), ('Chairil', NULL);
    INSERT INTO book (title, pages, note, author_id, isbn) VALUES ('Bumi Manusia', 535, 'one', 1, '9789799731234');
    INSERT INTO library_shop (name) VALUES ('Solo');
    INSERT INTO library_shop_books (shop_id, book_id) VALUES (1, 1);
"""

# Each: operations that make one migration, and SQL that puts something else in their way, if that can be.
CASES = {
    "create a model": (
        [
            create(
                "Loan",
                ("book", foreign_key("library.Book")),
                ("days", models.PositiveSmallIntegerField(db_default=14)),
                ("since", models.DateTimeField(db_default=Now())),
                ("code", models.SlugField(unique=True)),
                (
                    "twice",
                    models.GeneratedField(
                        expression=models.F("days") * 2, output_field=models.IntegerField(), db_persist=True
                    ),
                ),
                ("readers", models.ManyToManyField("library.Author")),
                db_table="loan",
                db_table_comment="what is lent",
                constraints=[
                    models.CheckConstraint(condition=models.Q(days__lt=100), name="loan_short"),
                    models.UniqueConstraint(fields=["book"], condition=models.Q(days=1), name="loan_partial"),
                    models.UniqueConstraint(
                        fields=["code", "days"], name="loan_unique", deferrable=models.Deferrable.DEFERRED
                    ),
                ],
                indexes=[models.Index(fields=["-days"], name="loan_days")],
                unique_together={("book", "days")},
            )
        ],
        "CREATE TABLE loan (id bigint PRIMARY KEY, days integer)",
    ),
    "delete a model": ([operations.DeleteModel("Shop")], None),
    "rename a model": ([operations.RenameModel("Shop", "Store")], "CREATE TABLE library_store (id bigint)"),
    "rename a table": (
        [operations.AlterModelTable("Author", "writer")],
        "CREATE TABLE writer (id bigint)",
    ),
    "rename a table with a many-to-many": (
        [operations.AlterModelTable("Shop", "store")],
        "CREATE TABLE store (id bigint)",
    ),
    "comment a table": ([operations.AlterModelTableComment("Author", "Who 'writes'")], None),
    "order with respect to": ([operations.AlterOrderWithRespectTo("Book", "author")], None),
    "add a column": (
        [operations.AddField("Author", "town", models.CharField(max_length=20, null=True))],
        "ALTER TABLE author ADD town varchar(21)",
    ),
    "add a column with a default": (
        [operations.AddField("Author", "town", models.CharField(max_length=20, default="100% Solo"))],
        "ALTER TABLE author ADD town varchar(20)",
    ),
    "add a column with a default of the database": (
        [operations.AddField("Author", "town", models.CharField(max_length=20, db_default="100% Solo"))],
        "ALTER TABLE author ADD town varchar(20) NOT NULL DEFAULT 'Jogja'",
    ),
    "add a unique, indexed, commented column": (
        [operations.AddField("Author", "slug", models.SlugField(unique=True, null=True, db_comment="Who?"))],
        "ALTER TABLE author ADD slug varchar(50)",
    ),
    "add an indexed column": (
        [operations.AddField("Author", "town", models.TextField(null=True, db_index=True))],
        "ALTER TABLE author ADD town text; CREATE INDEX \"author_town_d1c041b9\" ON author (town) WHERE town > ''",
    ),
    "add a checked column": (
        [operations.AddField("Author", "age", models.PositiveIntegerField(default=0))],
        "ALTER TABLE author ADD age integer NOT NULL DEFAULT 2 CHECK (age > 1)",
    ),
    "add a collated column": (
        [operations.AddField("Author", "town", models.CharField(max_length=9, null=True, db_collation="C"))],
        "ALTER TABLE author ADD town varchar(9)",
    ),
    "add a generated column": (
        [
            operations.AddField(
                "Author",
                "decade",
                models.GeneratedField(
                    expression=models.F("born") / 10, output_field=models.IntegerField(), db_persist=True
                ),
            )
        ],
        "ALTER TABLE author ADD decade integer GENERATED ALWAYS AS (born / 11) STORED",
    ),
    "add a foreign key": (
        [operations.AddField("Shop", "owner", foreign_key("library.Author", null=True))],
        "ALTER TABLE library_shop ADD owner_id bigint REFERENCES book",
    ),
    "add a many-to-many": ([operations.AddField("Author", "friends", models.ManyToManyField("library.Author"))], None),
    "remove a column": ([operations.RemoveField("Book", "blurb")], None),
    "remove a foreign key": ([operations.RemoveField("Book", "editor")], None),
    "remove a many-to-many": ([operations.RemoveField("Shop", "books")], None),
    "rename a column": (
        [operations.RenameField("Author", "born", "birth")],
        "ALTER TABLE author ADD birth integer",
    ),
    "rename a foreign key": (
        [operations.RenameField("Book", "author", "writer")],
        "ALTER TABLE book ADD writer_id integer",
    ),
    "alter a type": ([operations.AlterField("Book", "pages", models.BigIntegerField(default=1))], None),
    "alter a type that has a pattern index": (
        [operations.AlterField("Book", "isbn", models.TextField(null=True, unique=True))],
        None,
    ),
    "alter the type of a primary key": (
        [operations.AlterField("Author", "id", models.AutoField(primary_key=True))],
        None,
    ),
    "alter to no identity": ([operations.AlterField("Shop", "id", models.BigIntegerField(primary_key=True))], None),
    "alter to not null": ([operations.AlterField("Author", "born", models.IntegerField(default=1900))], None),
    "alter to not null with a default of the database": (
        [operations.AlterField("Author", "born", models.IntegerField(db_default=1900))],
        None,
    ),
    "alter to null": ([operations.AlterField("Author", "name", models.CharField(max_length=50, null=True))], None),
    "alter a default of the database": (
        [operations.AlterField("Book", "shelf", models.PositiveIntegerField(null=True, db_default=4))],
        None,
    ),
    "alter to unique": (
        [operations.AlterField("Author", "name", models.CharField(max_length=50, unique=True))],
        None,
    ),
    "alter to not unique": ([operations.AlterField("Book", "isbn", models.CharField(max_length=13, null=True))], None),
    "alter to indexed": (
        [operations.AlterField("Author", "born", models.IntegerField(null=True, db_index=True))],
        None,
    ),
    "alter to not indexed": ([operations.AlterField("Book", "title", models.CharField(max_length=50))], None),
    "alter to checked": ([operations.AlterField("Book", "pages", models.PositiveIntegerField(default=1))], None),
    "alter a collation": (
        [operations.AlterField("Author", "name", models.CharField(max_length=50, db_collation="C"))],
        None,
    ),
    "alter a comment": (
        [operations.AlterField("Author", "name", models.CharField(max_length=50, db_comment="Who?"))],
        None,
    ),
    "alter a foreign key to null": (
        [operations.AlterField("Book", "author", foreign_key("library.Author", null=True))],
        None,
    ),
    "alter a foreign key to none in the database": (
        [operations.AlterField("Book", "author", foreign_key("library.Author", db_constraint=False))],
        None,
    ),
    "alter a foreign key's target": ([operations.AlterField("Book", "author", foreign_key("library.Shop"))], None),
    "alter to a foreign key": (
        [operations.AlterField("Author", "born", foreign_key("library.Shop", null=True, db_column="born"))],
        None,
    ),
    "add an index": (
        [operations.AddIndex("Author", models.Index("born", models.F("name").desc(), name="idx"))],
        "CREATE INDEX idx ON author (born)",
    ),
    "add an index whose name another table's has": (
        [operations.AddIndex("Author", models.Index(fields=["born"], name="idx"))],
        "CREATE INDEX idx ON book (pages)",
    ),
    "add a partial index": (
        [operations.AddIndex("Author", models.Index(fields=["born"], condition=models.Q(name="%"), name="idx"))],
        "CREATE INDEX idx ON author (born) WHERE name = 'x'",
    ),
    "add a covering index": (
        [operations.AddIndex("Author", models.Index(fields=["born"], include=["name"], name="idx"))],
        "CREATE INDEX idx ON author (born, name)",
    ),
    "add an index with a class of operators": (
        [operations.AddIndex("Author", models.Index(fields=["name"], opclasses=["varchar_pattern_ops"], name="idx"))],
        "CREATE INDEX idx ON author (name)",
    ),
    "remove an index": ([operations.RemoveIndex("Book", "book_pages")], None),
    "rename an index": (
        [operations.RenameIndex("Book", new_name="idx", old_name="book_pages")],
        "CREATE INDEX idx ON book (pages)",
    ),
    "add an index concurrently": (
        [postgres.AddIndexConcurrently("Author", models.Index(fields=["born"], name="idx"))],
        "CREATE INDEX idx ON author (name)",
    ),
    "remove an index concurrently": ([postgres.RemoveIndexConcurrently("Book", "book_pages")], None),
    "add a check": (
        [
            operations.AddConstraint(
                "Author", models.CheckConstraint(condition=models.Q(born__gt=0) & ~models.Q(name="%"), name="c")
            )
        ],
        "ALTER TABLE author ADD CONSTRAINT c CHECK (born > -1)",
    ),
    "add a check that is not valid": (
        [postgres.AddConstraintNotValid("Author", models.CheckConstraint(condition=models.Q(born__gt=0), name="c"))],
        "ALTER TABLE author ADD CONSTRAINT c CHECK (born > -1)",
    ),
    "add and validate a check": (
        [
            postgres.AddConstraintNotValid("Author", models.CheckConstraint(condition=models.Q(born__gt=0), name="c")),
            postgres.ValidateConstraint("Author", "c"),
        ],
        None,
    ),
    "add a unique constraint": (
        [operations.AddConstraint("Author", models.UniqueConstraint(fields=["name"], name="c"))],
        "ALTER TABLE author ADD CONSTRAINT c UNIQUE (born)",
    ),
    "add a deferrable unique constraint": (
        [
            operations.AddConstraint(
                "Author", models.UniqueConstraint(fields=["name"], deferrable=models.Deferrable.DEFERRED, name="c")
            )
        ],
        "ALTER TABLE author ADD CONSTRAINT c UNIQUE (name)",
    ),
    "add a partial unique constraint": (
        [
            operations.AddConstraint(
                "Author", models.UniqueConstraint(fields=["name"], condition=models.Q(born=1), name="c")
            )
        ],
        "CREATE UNIQUE INDEX c ON author (name) WHERE born = 2",
    ),
    "add a unique constraint of expressions": (
        [operations.AddConstraint("Author", models.UniqueConstraint(Lower("name"), name="c"))],
        "CREATE INDEX c ON author (lower(name))",
    ),
    "add a covering unique constraint": (
        [operations.AddConstraint("Author", models.UniqueConstraint(fields=["name"], include=["born"], name="c"))],
        "CREATE UNIQUE INDEX c ON author (name)",
    ),
    "add a unique constraint of nulls": (
        [operations.AddConstraint("Author", models.UniqueConstraint(fields=["born"], nulls_distinct=False, name="c"))],
        "ALTER TABLE author ADD CONSTRAINT c UNIQUE (born)",
    ),
    "add an exclusion": (
        [
            operations.AddConstraint(
                "Author",
                ExclusionConstraint(name="c", expressions=[(models.Func("born", "born", function="int4range"), "&&")]),
            )
        ],
        "ALTER TABLE author ADD CONSTRAINT c EXCLUDE USING gist (int4range(born, born) WITH -|-)",
    ),
    "remove a check": ([operations.RemoveConstraint("Book", "book_has_pages")], None),
    "remove a unique constraint": ([operations.RemoveConstraint("Book", "book_unique")], None),
    "remove a unique constraint of expressions": ([operations.RemoveConstraint("Book", "book_note_unique")], None),
    "add a unique_together": (
        [operations.AlterUniqueTogether("Author", {("name", "born")})],
        None,
    ),
    "remove a unique_together": ([operations.AlterUniqueTogether("Book", set())], None),
    "create a collation": (
        [postgres.CreateCollation("plain", "C")],
        """CREATE COLLATION plain (lc_collate = 'C', lc_ctype = 'POSIX')""",
    ),
    "add, fill and close a column": (
        [
            operations.AddField("Author", "town", models.CharField(max_length=20, null=True)),
            operations.RunSQL("UPDATE author SET town = 'Solo' WHERE town IS NULL", operations.RunSQL.noop),
            operations.AlterField("Author", "town", models.CharField(max_length=20)),
        ],
        "ALTER TABLE author ADD town text",
    ),
    "rename and alter a column": (
        [
            operations.RenameField("Author", "born", "birth"),
            operations.AlterField("Author", "birth", models.BigIntegerField(null=True)),
        ],
        "ALTER TABLE author ADD birth bigint",
    ),
    "alter and remove a column": (
        [
            operations.AlterField("Author", "born", models.BigIntegerField(null=True)),
            operations.RemoveField("Author", "born"),
        ],
        None,
    ),
}
