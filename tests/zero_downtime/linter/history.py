"""A history of migrations written as text, as the examples of the rules are: an app ``shop`` with two tables."""

import itertools
import re

from django.contrib.postgres.operations import AddConstraintNotValid, ValidateConstraint
from django.db import migrations, models
from django.db.migrations.graph import MigrationGraph
from django.db.migrations.loader import MigrationLoader
from django.db.models import Q

from gotong_royong.zero_downtime.backfills.declarations import DECLARED, BackfillDeclaration
from gotong_royong.zero_downtime.linter import judge
from gotong_royong.zero_downtime.linter.trace import fill, traces
from gotong_royong.zero_downtime.operations import IgnoreRules, RunBackfill
from gotong_royong.zero_downtime.stages import Stage

NAMES = {
    "migrations": migrations,
    "models": models,
    "AddConstraintNotValid": AddConstraintNotValid,
    "ValidateConstraint": ValidateConstraint,
    "IgnoreRules": IgnoreRules,
    "RunBackfill": RunBackfill,
    "BackfillDeclaration": BackfillDeclaration,
    "Q": Q,
    "Stage": Stage,
}

SHOP = """
operations = [
    migrations.CreateModel("Customer", [
        ("id", models.BigAutoField(primary_key=True)),
        ("name", models.CharField(max_length=100)),
    ]),
    migrations.CreateModel("Order", [
        ("id", models.BigAutoField(primary_key=True)),
        ("customer", models.ForeignKey("shop.Customer", models.CASCADE)),
        ("number", models.IntegerField()),
        ("note", models.TextField(null=True)),
        ("created", models.DateTimeField(auto_now_add=True)),
    ], options={"indexes": [models.Index(fields=["created"], name="shop_order_created")]}),
    migrations.RunSQL("CREATE TYPE shop_state AS ENUM ('open', 'done')", "DROP TYPE shop_state"),
    migrations.RunSQL(
        "CREATE TABLE django_content_type (id int PRIMARY KEY, app_label text, model text)",
        "DROP TABLE django_content_type",
    ),
]
"""


def migration(source, name, depends_on=None):
    """Make a migration of the body that is written in ``source``."""
    body = dict(NAMES)
    exec(source, body)  # noqa: S102
    for one in [one for one in body.values() if isinstance(one, type) and one.__module__ == "builtins"]:
        if issubclass(one, BackfillDeclaration):  # which an app's backfills.py would have declared
            one.name = "shop." + re.sub(r"(?<!^)(?=[A-Z])", "_", one.__name__).lower()
            DECLARED[one.name] = one
    known = {key: body[key] for key in ("operations", "atomic", "stage") if key in body}
    dependencies = [("shop", depends_on)] if depends_on else []
    return type("Migration", (migrations.Migration,), {**known, "dependencies": dependencies})(name, "shop")


def loader_of(*sources):
    """Return what loads a history that begins with SHOP and goes on with these, each after the one before."""
    loader = MigrationLoader(None, load=False)
    loader.graph, loader.unmigrated_apps, loader.migrated_apps = MigrationGraph(), set(), {"shop"}
    names = [f"20260101{number:02}0000_step" for number in range(len(sources) + 1)]
    for source, name, before in zip([SHOP, *sources], names, [None, *names], strict=False):
        loader.graph.add_node(("shop", name), migration(source, name, before))
    for before, name in itertools.pairwise(names):
        loader.graph.add_dependency(None, ("shop", name), ("shop", before))
    return loader


def trace(database, *sources, **options):
    """Run the history in the database, which is emptied before, and return the traces of all but the first."""
    with database.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    loader = loader_of(*sources)
    keys = sorted(loader.graph.nodes)
    fill(database, loader, keys[:1])
    return list(traces(database, loader, keys[:1], keys[1:], set(keys), **options))


def lint(database, *sources, **options):
    """Return the ids of the rules that each migration after the first breaks."""
    return [{one.rule.id for one in judge(seen)} for seen in trace(database, *sources, **options)]
