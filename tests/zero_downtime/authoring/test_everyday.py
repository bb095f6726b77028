"""Does an everyday edit of a model become files that lint finds nothing in, and that lead where Django's would?"""

import re

import pytest

from tests.catalog import fingerprint

pytestmark = [pytest.mark.once, pytest.mark.newest]

BASE = """
import uuid
import django.utils.timezone

class Author(models.Model):
    name = models.CharField(max_length=50)

class Book(models.Model):
    title = models.CharField(max_length=50)
    price = models.IntegerField(default=1)
    note = models.TextField(null=True)
    pages = models.IntegerField()
    rank = models.IntegerField(default=1)
    about = models.TextField(blank=True)
    token = models.UUIDField(default=uuid.uuid4)
    isbn = models.CharField(max_length=20, null=True, unique=True)
    writer = models.ForeignKey(Author, models.CASCADE, null=True, related_name='wrote')
    stock = models.IntegerField(db_default=0)

    class Meta:
        indexes = [models.Index(fields=["price"], name="by_price")]
        constraints = [models.CheckConstraint(condition=models.Q(pages__gt=0), name="has_pages")]
"""
ROWS = """
INSERT INTO shop_author (name) SELECT 'author ' || i FROM generate_series(1, 20) i;
INSERT INTO shop_book (title, price, pages, rank, about, token, isbn, note)
SELECT 'book ' || i, i, i, i, '', gen_random_uuid(), 'isbn ' || i, 'note' FROM generate_series(1, 300) i
"""
PRE, POST = "PRE_DEPLOY", "POST_DEPLOY"
NEW = "    note = models.TextField(null=True)\n"
INDEX = 'models.Index(fields=["price"], name="by_price")'
CHECK = 'models.CheckConstraint(condition=models.Q(pages__gt=0), name="has_pages")'


def field(text):
    return NEW, f"{NEW}    {text}\n"


# What is replaced in the models, by what, and the stages of the files
EDITS = {
    "a nullable field": (*field("town = models.TextField(null=True)"), [PRE]),
    "a nullable field with a default": (*field("town = models.TextField(null=True, default='Solo')"), [PRE]),
    "a field with db_default": (*field("town = models.TextField(db_default='Solo')"), [PRE]),
    "a field with a default": (*field("town = models.CharField(max_length=9, default='Solo')"), [PRE, POST]),
    "a field with a list": (*field("tags = models.JSONField(default=list)"), [PRE, POST]),
    "a time that is set": (*field("at = models.DateTimeField(auto_now=True, null=True)"), [PRE]),
    "a text that may be empty": (*field("town = models.CharField(max_length=9, blank=True)"), [PRE, POST]),
    "a time": (*field("at = models.DateTimeField(default=django.utils.timezone.now)"), [PRE, POST]),
    "a field with a check": (*field("sold = models.PositiveIntegerField(null=True)"), [PRE]),
    "a field with a check and a default": (*field("sold = models.PositiveIntegerField(default=0)"), [PRE, POST]),
    "an indexed field": (*field("town = models.IntegerField(null=True, db_index=True)"), [PRE]),
    "an indexed text with a default": (*field("slug = models.SlugField(default='-')"), [PRE, POST]),
    "a unique field": (*field("code = models.IntegerField(null=True, unique=True)"), [PRE]),
    "a unique text": (*field("code = models.CharField(max_length=9, null=True, unique=True)"), [PRE]),
    "a foreign key": (*field("author = models.ForeignKey(Author, models.CASCADE, null=True)"), [PRE]),
    "many to many": (*field("authors = models.ManyToManyField(Author)"), [PRE]),
    "a new model": ("class Book(", "class Shop(models.Model):\n    pass\n\nclass Book(", [PRE]),
    "an index": (INDEX, f'{INDEX}, models.Index(fields=["title"], name="by_title")', [PRE]),
    "db_index": (
        "title = models.CharField(max_length=50",
        "title = models.CharField(db_index=True, max_length=50",
        [PRE],
    ),
    "no index": (f"indexes = [{INDEX}]", "indexes = []", [POST]),
    "another index of the name": (INDEX, INDEX.replace('"price"', '"pages"'), [POST]),
    "unique": ("pages = models.IntegerField()", "pages = models.IntegerField(unique=True)", [POST]),
    "a unique constraint": (CHECK, f'{CHECK}, models.UniqueConstraint(fields=["pages"], name="one")', [POST]),
    "a check": (CHECK, f'{CHECK}, models.CheckConstraint(condition=models.Q(price__gt=0), name="costs")', [POST]),
    "no check": (f"constraints = [{CHECK}]", "constraints = []", [PRE]),
    "another check of the name": (CHECK, CHECK.replace("gt=0", "gte=1"), [PRE, POST]),
    "remove a text that may be empty": ("    about = models.TextField(blank=True)\n", "", [PRE, POST]),
    "remove a key of its own": ("    token = models.UUIDField(default=uuid.uuid4)\n", "", [PRE, POST]),
    "a longer, indexed name": (
        *field("town = models.SlugField(db_column='Town (of the author) ' + 'x' * 30, unique=True, null=True)"),
        [PRE],
    ),
    "choices": (
        "price = models.IntegerField(default=1)",
        "price = models.IntegerField(choices=[(1, 'one')], default=2)",
        [PRE],
    ),
    "remove a nullable field": (NEW, "", [POST]),
    "remove a field with db_default": ("    stock = models.IntegerField(db_default=0)\n", "", [POST]),
    "remove a field with a default": ("    rank = models.IntegerField(default=1)\n", "", [PRE, POST]),
    "NOT NULL, though all rows have a value": (
        "note = models.TextField(null=True)",
        "note = models.TextField()",
        [POST],
    ),
    "NOT NULL with a default": (NEW, NEW.replace("null=True", "default='-'"), [PRE, POST]),
    "NOT NULL with a default and an index": (
        NEW,
        NEW.replace("null=True", "default='-', db_index=True"),
        [PRE, PRE, POST],
    ),
    "NOT NULL with db_default": (NEW, NEW.replace("null=True", "db_default='-'"), [PRE, PRE, POST]),
    "a positive number": (
        "price = models.IntegerField(default=1)",
        "price = models.PositiveIntegerField(default=1)",
        [POST],
    ),
    "an order": ("    class Meta:\n", "    class Meta:\n        order_with_respect_to = 'writer'\n", [PRE, POST]),
    "NULL": ("pages = models.IntegerField()", "pages = models.IntegerField(null=True)", [PRE]),
    "a new db_default": ("pages = models.IntegerField()", "pages = models.IntegerField(db_default=1)", [PRE]),
}


EVERYDAY = (
    "a nullable field",
    "a field with a default",
    "an index",
    "unique",
    "a foreign key",
    "remove a field with a default",
    "NOT NULL with a default",
    "a check",
    "choices",
    "many to many",
)
LEFT = {
    "NULL": "W414",  # running code may read None: only the author knows
    "remove a key of its own": "E102",  # on the way down, each row gets a key of its own
}


def seen(database):
    with database.cursor() as cursor:
        return fingerprint(cursor)


def new_files(shop, before):
    return [path for path in sorted(shop.migrations.glob("2*.py")) if path not in before]


@pytest.fixture
def library(shop, scratch):
    (shop.migrations / "0001_items.py").unlink()
    shop.models(BASE)
    shop.succeed("makemigrations", "shop")
    shop.succeed("migrate")
    with scratch.cursor() as cursor:
        cursor.execute(ROWS)
    return shop


@pytest.mark.parametrize(
    "edit", [edit if edit in EVERYDAY else pytest.param(edit, marks=pytest.mark.slow) for edit in EDITS]
)
def test_one_command_and_no_finding(library, scratch, edit):
    old, new, stages = EDITS[edit]
    assert BASE.count(old) == 1
    base, before = set(library.migrations.glob("2*.py")), seen(scratch)
    (first,) = (path.stem for path in base)
    library.models(BASE.replace(old, new))
    said = library.succeed("makemigrations", "shop", "--no-input")
    files = new_files(library, base)
    assert [re.search(r"stage = Stage\.(\w+)", path.read_text())[1] for path in files] == stages, said
    assert said.count("Before the deploy: ") == stages.count(PRE)
    assert said.count("After the deploy: ") == stages.count(POST)
    found = library.run("lintmigrations", "shop")
    left = [LEFT[edit]] if edit in LEFT else []
    assert re.findall(r"\b[EW]\d{3}\b", found.out) == left, "".join([found.out, *(path.read_text() for path in files)])
    assert not re.search(r"add_(\w+)_to_shop_book_and_alter_\1", said)
    library.succeed("migrate", "--pre-deploy")
    library.succeed("migrate")
    assert "No changes" in library.succeed("makemigrations", "--check")
    after = seen(scratch)
    library.succeed("migrate", "shop", first, "--no-input")
    assert seen(scratch) == before
    library.succeed("migrate")
    assert seen(scratch) == after
    library.succeed("migrate", "shop", first, "--no-input")
    for path in files:
        path.unlink()
    library.succeed("makemigrations", "shop", "--no-input", "--no-rewrite")
    library.succeed("migrate")
    assert seen(scratch) == after  # as Django would have it


def test_several_edits_are_two_files(library, scratch):
    after = BASE.replace(NEW, "    town = models.TextField(default='Solo')\n    tag = models.SlugField(null=True)\n")
    library.models(
        after.replace(f"constraints = [{CHECK}]", "constraints = []") + "\nclass Shop(models.Model):\n    pass"
    )
    said = library.succeed("makemigrations", "shop", "--no-input", "--name", "move")
    before, last = [path.stem for path in sorted(library.migrations.glob("2*_move*.py"))]
    assert (before[15:], last[15:]) == ("move", "move_complete")
    assert f"Before the deploy: shop.{before}" in said
    assert "0 errors, 0 warnings" in library.succeed("lintmigrations", "shop")
    library.succeed("migrate", "--pre-deploy")
    library.succeed("migrate")
    assert "No changes" in library.succeed("makemigrations", "--check")


def test_a_field_that_new_code_cannot_leave_out(library):
    files = set(library.migrations.glob("*.py"))
    library.models(BASE.replace("    title = models.CharField(max_length=50)\n", ""))
    done = library.run("makemigrations", "shop", "--no-input")
    assert done.code == 3
    assert "shop.book.title is NOT NULL and has no default that fits every row." in done.err
    assert set(library.migrations.glob("*.py")) == files
    library.succeed("makemigrations", "shop", "--no-input", "--no-rewrite")


def test_a_migration_of_another_app_needs_what_comes_before_the_deploy(library):
    library.app("cafe", models="from django.db import models\n\nclass Cup(models.Model):\n    pass\n")
    models = "class Cup(models.Model):\n    shop = models.ForeignKey('shop.Shop', models.CASCADE, null=True)\n"
    library.succeed("makemigrations", "cafe")
    library.succeed("migrate")
    (library.folder / "cafe" / "models.py").write_text(f"from django.db import models\n\n{models}")
    library.models(BASE.replace(NEW, "") + "\nclass Shop(models.Model):\n    pass")
    library.succeed("makemigrations", "--no-input")
    first, last = [path.stem for path in sorted(library.migrations.glob("2*.py"))][1:]
    (cup,) = [path.read_text() for path in sorted((library.folder / "cafe" / "migrations").glob("2*.py"))[1:]]
    assert first in cup
    assert last not in cup
    assert "0 errors, 0 warnings" in library.succeed("lintmigrations", "shop")
    assert "0 errors, 0 warnings" in library.succeed("lintmigrations", "cafe")
    library.succeed("migrate")


def test_what_goes_in_two_apps_goes_in_order(library):
    shop, cup = "\nclass Shop(models.Model):\n    pass\n", "from django.db import models\n\nclass Cup(models.Model):\n"
    key, size = "models.ForeignKey('shop.Shop', models.CASCADE, null=True)", "models.IntegerField(default=1)"
    library.app("cafe", models=f"{cup}    shop = {key}\n    size = {size}\n")
    library.models(BASE + shop)
    library.succeed("makemigrations", "cafe", "shop")
    library.succeed("migrate")
    library.models(BASE)
    (library.folder / "cafe" / "models.py").write_text(f"{cup}    pass\n")
    said = library.succeed("makemigrations", "--no-input")
    assert (said.count("Before the deploy: "), said.count("After the deploy: ")) == (1, 2)
    library.succeed("migrate", "--pre-deploy")
    library.succeed("migrate", "--no-input")
    assert "No changes" in library.succeed("makemigrations", "--check")


def test_no_database_is_needed(library):
    nowhere = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    library.models(BASE.replace(*field("town = models.SlugField(default='Solo', unique=True, null=True)")))
    done = library.run("makemigrations", "shop", "--no-input", **nowhere)
    assert done.code == 0, done.err
    assert "CREATE UNIQUE INDEX CONCURRENTLY" in sorted(library.migrations.glob("2*.py"))[-1].read_text()


def test_a_large_table_is_filled_in_the_background(library, scratch):
    """And what needs the fill waits for it; new NULLs are filled by what needs them."""

    def nulls(statement="SELECT count(*) FROM shop_book WHERE note IS NULL"):
        with scratch.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    nulls("UPDATE shop_book SET note = NULL WHERE id > 100; ANALYZE shop_book")
    library.settings("ZERO_DOWNTIME_BACKFILL_INLINE = 10\n")
    library.models(BASE.replace(NEW, NEW.replace("null=True", "default='-'")))
    library.succeed("makemigrations", "shop", "--no-input")
    first, fill, last = (path.stem for path in sorted(library.migrations.glob("2*.py")))
    library.succeed("migrate", "--pre-deploy")
    assert nulls() == 200
    assert f"backfill run shop.{fill}" in library.fail("migrate")
    assert f"shop.{fill}" in library.succeed("backfill", "list")
    library.succeed("backfill", "run", f"shop.{fill}")
    assert nulls() == 0
    nulls("UPDATE shop_book SET note = NULL WHERE id = 7")  # by old code
    library.succeed("migrate")
    assert nulls() == 0
    assert nulls("SELECT count(*) FROM shop_book WHERE note = '-'") == 201
    library.succeed("migrate", "shop", first, "--no-input")
    assert f"shop.{fill}" not in library.succeed("backfill", "list").replace("not started", "")
    nulls("UPDATE shop_book SET note = NULL")
    library.succeed("migrate", "--pre-deploy")
    library.succeed("backfill", "run", f"shop.{fill}")
    library.succeed("migrate")
    assert last in library.succeed("showmigrations", "shop")


def rows_of(database, statement):
    with database.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


def test_null_of_json_is_a_value(library, scratch):
    library.models(BASE.replace(*field("tags = models.JSONField(null=True)")))
    library.succeed("makemigrations", "shop")
    library.succeed("migrate")
    rows_of(scratch, "UPDATE shop_book SET tags = 'null' WHERE id = 1")
    library.models(BASE.replace(*field("tags = models.JSONField(default=dict)")))
    library.succeed("makemigrations", "shop")
    library.succeed("migrate")
    counted = "SELECT count(*) FILTER (WHERE tags = 'null'), count(*) FILTER (WHERE tags = '{}') FROM shop_book"
    assert rows_of(scratch, counted) == [(1, 299)]


def test_a_unique_set_keeps_nothing_else_back(library):
    after = BASE.replace("price = models.IntegerField(default=1)", "price = models.IntegerField(null=True)")
    after = after.replace("    rank = models.IntegerField(default=1)\n", "")
    library.models(
        after.replace("    class Meta:\n", "    class Meta:\n        unique_together = [('title', 'pages')]\n")
    )
    library.succeed("makemigrations", "shop", "--no-input")
    first, last = [path.read_text() for path in sorted(library.migrations.glob("2*.py"))][1:]
    assert "DROP NOT NULL" in first
    assert "db_default=1" in first
    assert "UNIQUE USING INDEX" in last
    assert "RemoveField" in last


def test_a_table_in_another_schema(library, scratch):
    rows_of(scratch, "CREATE SCHEMA app")
    there = BASE.replace("    class Meta:\n", """    class Meta:\n        db_table = '"app"."book"'\n""")
    files = set(library.migrations.glob("2*.py"))
    for path in files:
        path.unlink()
    rows_of(scratch, "DROP TABLE shop_book, shop_author; DELETE FROM django_migrations WHERE app = 'shop'")
    library.models(there)
    library.succeed("makemigrations", "shop")
    library.succeed("migrate", "--no-input")
    more = "code = models.IntegerField(null=True, unique=True)\n    sold = models.PositiveIntegerField(default=3)"
    library.models(there.replace(*field(more)))
    library.succeed("makemigrations", "shop")
    library.succeed("migrate")
    names = "SELECT conname FROM pg_constraint WHERE conrelid = 'app.book'::regclass AND conname ~ 'code|sold.*ch'"
    assert {*rows_of(scratch, names)} == {("book_code_key",), ("book_sold_check",)}


def test_a_database_that_is_not_postgresql_has_the_table_too(library):
    library.settings("DATABASES['other'] = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}\n")
    library.models(BASE.replace(*field("town = models.IntegerField(null=True, db_index=True)")))
    library.succeed("makemigrations", "shop")
    assert "RunSQL" not in sorted(library.migrations.glob("2*.py"))[-1].read_text()


def test_what_would_wait_for_the_end_of_a_deploy_is_told(library):
    library.models(BASE.replace(NEW, ""))
    library.succeed("makemigrations", "shop")
    last = max(path.stem for path in library.migrations.glob("2*.py"))
    more = BASE.replace(NEW, "    town = models.TextField(null=True)\n")
    library.models(more)
    said = library.succeed("makemigrations", "shop")
    assert f"It needs shop.{last}, which comes after the deploy and is not applied here." in said
    library.succeed("migrate")
    library.models(more.replace("town =", "village = models.TextField(null=True)\n    town ="))
    assert "It needs" not in library.succeed("makemigrations", "shop")


def test_a_table_with_a_space_in_its_name(library):
    meta = "    class Meta:\n        db_table = 'Bo ok'\n"
    there = f"class Shop(models.Model):\n    name = models.CharField(max_length=9{{}})\n{meta}"
    library.models(BASE + there.format(""))
    library.succeed("makemigrations", "shop")
    library.succeed("migrate")
    library.models(BASE + there.format(", db_index=True, unique=True"))
    library.succeed("makemigrations", "shop")
    assert "0 errors, 0 warnings" in library.succeed("lintmigrations", "shop")


def test_all_files_are_written_or_none(library):
    files = set(library.migrations.glob("*.py"))
    new = "class Shop(models.Model):\n    pass\n\n\nclass Book("
    library.models(BASE.replace(*field("town = models.TextField(default=lambda: 'Solo')")).replace("class Book(", new))
    said = library.fail("makemigrations", "shop")
    assert "cannot be written, so nothing was: Cannot serialize function: lambda" in said
    assert set(library.migrations.glob("*.py")) == files


def test_an_update_of_pieces_is_refused(library):
    library.models(BASE.replace(*field("town = models.TextField(default='Solo')")))
    library.succeed("makemigrations", "shop")
    files = {path: path.read_text() for path in library.migrations.glob("2*.py")}
    library.models(
        BASE.replace(*field("town = models.TextField(default='Yogya')\n    a = models.TextField(default='a')"))
    )
    said = library.fail("makemigrations", "shop", "--update")
    assert "is not atomic or comes after the deploy, so other changes have no place in it. Delete" in said
    assert {path: path.read_text() for path in library.migrations.glob("2*.py")} == files
