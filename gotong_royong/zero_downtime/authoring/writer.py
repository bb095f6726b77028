"""What does the file of a piece say beside Django's: its stage, and whether its statements commit alone?"""

from django.db.migrations.writer import MigrationWriter

from ..apps import NAME

CLASS = "class Migration(migrations.Migration):\n"


class Writer(MigrationWriter):
    """Django's writer, with ``atomic`` and ``stage``."""

    def as_string(self) -> str:
        text, stage = super().as_string(), getattr(self.migration, "stage", None)
        attributes = "" if self.migration.atomic else "    atomic = False\n"
        if stage:
            attributes += f"    stage = Stage.{stage.name}\n"
            text = text.replace(f"\n\n\n{CLASS}", f"\n\nfrom {NAME}.stages import Stage\n\n\n{CLASS}", 1)
        return text.replace(CLASS, CLASS + attributes, 1)
