"""A migration of some operations, applied as migrate would, and what the ledger says of it."""

import os

from django.db import migrations

from gotong_royong.zero_downtime.models import Step
from gotong_royong.zero_downtime.running.executor import Executor
from gotong_royong.zero_downtime.running.ledger import only_runner
from tests.databases import url


def ignore(event, **facts):
    pass


def run(database, *operations, atomic=True, **keywords):
    """Apply a migration made of these operations, as migrate would; return what the ledger says of it."""
    body = {"operations": list(operations), "atomic": atomic, "dependencies": []}
    migration = type("Migration", (migrations.Migration,), body)("20270101000000_trial", "accounts")
    with only_runner(database, ignore) as alias:
        executor = Executor(database, alias=alias, **keywords)
        state, graph = executor._create_project_state(with_applied_migrations=True), executor.loader.graph
        leaf = graph.leaf_nodes("accounts")[0]
        graph.add_node(("accounts", migration.name), migration)
        graph.add_dependency(migration, ("accounts", migration.name), leaf)
        executor.migrate([], plan=[(migration, False)], state=state)
    return Step.objects.using(database.alias).latest("pk")


def ask(database, question):
    with database.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()


def environment(database):
    return {**os.environ, "DATABASE_URL": url(database), "DJANGO_SETTINGS_MODULE": "tests.settings"}
