"""Are the tables of a state those that Django itself names, and are they what they were when it rolls on?"""

import pytest
from django.apps import apps
from django.db import migrations, models
from django.db.migrations.loader import MigrationLoader

from gotong_royong.zero_downtime.linter.code import Code
from gotong_royong.zero_downtime.running.states import Rolling
from tests.zero_downtime.linter.history import loader_of

pytestmark = pytest.mark.once


def test_every_table_of_the_project_is_named_as_its_model_names_it():
    code = Code(Rolling(MigrationLoader(None).project_state()))
    migrated = {name.split(".")[0] for name in (model._meta.label for model in code.values())}
    real = {
        model._meta.db_table: model._meta.label
        for model in apps.get_models(include_auto_created=True)
        if model._meta.app_label in migrated and not model._meta.proxy and not model._meta.swapped
    }
    assert {table: model._meta.label for table, model in code.items()} == real
    assert "auth_user" not in code
    assert "auth_group_permissions" in code


def test_what_has_changed_since():
    rolling = Rolling(loader_of().project_state())
    before = Code(rolling)
    many = migrations.AddField("customer", "friends", models.ManyToManyField("self", db_table='"other"'))
    rolling.step(many, "shop")
    rolling.step(migrations.AlterModelTable("order", "orders"), "shop")
    after = Code(rolling, before)
    assert after.changed_since(before) == {"shop_customer", "other", "orders"}
    assert [field.column for field in after["other"]._meta.fields] == ["id", "from_customer_id", "to_customer_id"]
    assert set(before) == {"shop_customer", "shop_order"}
    assert [field.name for field in before["shop_customer"]._meta.many_to_many] == []


def test_what_has_been_looked_at_only_is_the_same():
    rolling = Rolling(loader_of().project_state())
    before = Code(rolling)

    class Unknown(migrations.RunSQL):
        """May change any model, for all that is known."""

    rolling.step(Unknown("SELECT 1"), "shop")
    assert Code(rolling, before).changed_since(before) == set()
