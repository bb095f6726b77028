"""What does a project with hundreds of migrations look like? Ten apps, each needing the one before, grown in steps."""

from pathlib import Path

APPS = 10
STEPS_OF_A_MODEL = 10

MIGRATION = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = {dependencies}

    operations = [
        migrations.{operation},
    ]
"""
MODEL = """

class {name}(models.Model):
{fields}

    class Meta:
        indexes = [{indexes}]
        constraints = [{constraints}]
"""
ID = "models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')"
FOREIGN_KEY = "models.ForeignKey('{app}.{model}', null=True, on_delete=models.CASCADE, related_name='+')"


class App:
    """Writes one migration after the other, and remembers what the models have become."""

    def __init__(self, number: int) -> None:
        self.name, self.needs = f"app{number}", f"app{number - 1}" if number else ""
        self.fields: dict[str, dict[str, str]] = {}
        self.indexes: dict[str, str] = {}
        self.constraints: dict[str, str] = {}

    def operation(self, step: int) -> str:
        """Make the change of this step to the models, and return the operation that says so."""
        model = f"Model{step // STEPS_OF_A_MODEL}"
        fields = self.fields.setdefault(model, {})
        match step % STEPS_OF_A_MODEL:
            case 0:
                fields["name"] = "models.CharField(max_length=50)"
                if self.needs:
                    fields["parent"] = FOREIGN_KEY.format(app=self.needs, model=model)
                listed = "".join(f"('{field}', {source}), " for field, source in fields.items())
                return f"CreateModel('{model}', [('id', {ID}), {listed}])"
            case 3:
                self.indexes[model] = f"models.Index(fields=['name'], name='{self.name}_index_{step}')"
                return f"AddIndex('{model}', {self.indexes[model]})"
            case 5:
                fields["name"] = "models.CharField(max_length=100)"
                return f"AlterField('{model}', 'name', {fields['name']})"
            case 6:
                return "RunPython(migrations.RunPython.noop, migrations.RunPython.noop)"
            case 8:
                condition = "condition=models.Q(('number_1__gte', 0))"
                self.constraints[model] = f"models.CheckConstraint({condition}, name='{self.name}_check_{step}')"
                return f"AddConstraint('{model}', {self.constraints[model]})"
            case 9:
                name, source = "first", FOREIGN_KEY.format(app=self.name, model="Model0")
            case number:
                name = f"number_{number}"
                source = "models.IntegerField(null=True)" if number % 2 else "models.IntegerField(db_default=0)"
        fields[name] = source
        return f"AddField('{model}', '{name}', {source})"

    def dependencies(self, step: int) -> list[tuple[str, str]]:
        needed = [(self.name, migration_name(step - 1))] if step else []
        if self.needs and step % STEPS_OF_A_MODEL == 0:
            needed.append((self.needs, migration_name(step)))
        return needed

    def models(self) -> str:
        models = (
            MODEL.format(
                name=model,
                fields="\n".join(f"    {field} = {source}" for field, source in fields.items()),
                indexes=self.indexes.get(model, ""),
                constraints=self.constraints.get(model, ""),
            )
            for model, fields in self.fields.items()
        )
        return "from django.db import models\n" + "".join(models)


def migration_name(step: int) -> str:
    return f"{step + 1:04}_step"


def write_project(folder: Path, size: int) -> list[str]:
    """Write apps that have ``size`` migrations together into the folder; return the apps' names."""
    apps = [App(number) for number in range(min(APPS, size))]
    for number, app in enumerate(apps):
        migrations = folder / app.name / "migrations"
        migrations.mkdir(parents=True)
        for package in (folder / app.name, migrations):
            (package / "__init__.py").touch()
        for step in range(size // len(apps) + (number < size % len(apps))):
            source = MIGRATION.format(dependencies=app.dependencies(step), operation=app.operation(step))
            (migrations / f"{migration_name(step)}.py").write_text(source)
        (folder / app.name / "models.py").write_text(app.models())
    return [app.name for app in apps]
