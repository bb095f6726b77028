from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="Customer",
            fields=[("id", models.BigAutoField(primary_key=True))],
            options={"db_table": "customers"},
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                (
                    "customer",
                    models.ForeignKey("shop.Customer", on_delete=models.CASCADE, db_index=False, db_constraint=False),
                ),
                ("amount", models.IntegerField(null=True)),
                ("note", models.TextField()),
                ("legacy", models.TextField(null=True)),
                ("paid", models.BooleanField()),
            ],
            options={"db_table": "orders"},
        ),
    ]
