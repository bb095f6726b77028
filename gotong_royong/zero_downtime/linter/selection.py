"""Which migrations are judged, and which run before them?"""

import hashlib
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import django
from django.conf import settings
from django.core.management import CommandError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.exceptions import AmbiguityError
from django.db.migrations.loader import MigrationLoader

from ..conf import conf
from ..exceptions import ZeroDowntimeError, meant
from ..running.diagnosis import refuse_unknown_apps
from ..running.loader import file_of, is_own
from ..stages import Key
from .trace import everything

LAID = "2"  # changes whenever the same migrations lead to another ground


class Selection(NamedTuple):
    """``ground`` is run first, then ``plan``, of which ``judged`` is a part; each in the order of the graph.

    ``one_deploy`` says whether all of the plan is deployed at once: then what it makes itself has no users yet.
    """

    judged: frozenset[Key]
    ground: tuple[Key, ...]
    plan: tuple[Key, ...]
    one_deploy: bool

    def without(self, told: Collection[Key]) -> "Selection":
        """Judge all but these, which run all the same."""
        return self._replace(judged=self.judged.difference(told))

    def template(self, loader: MigrationLoader, connection: BaseDatabaseWrapper) -> str:
        """Name the database that the ground leads to, by the project and the contents of its files."""
        project = _digest([settings.SETTINGS_MODULE or "", str(Path.cwd()), connection.alias])[:8]
        files = [Path(file) for key in self.ground if (file := file_of(loader.graph.nodes[key]))]
        helpers = {path for folder in {file.parent for file in files} for path in folder.glob("_*.py")}
        texts = [f"{path}\n{path.read_text()}" for path in [*files, *sorted(helpers)]]
        return f"{project}_{_digest([LAID, django.__version__, *texts])[:16]}"


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def select(loader: MigrationLoader, keys: Iterable[Key], *, one_deploy: bool = False) -> Selection:
    """Put the judged migrations and those that they depend on in order."""
    judged, graph = frozenset(keys), loader.graph
    ordered = everything(loader)
    parents = {key: [parent.key for parent in graph.node_map[key].parents] for key in ordered}
    later, needed = set(judged), set(judged)
    for key in ordered:
        if not later.isdisjoint(parents[key]):
            later.add(key)
    for key in reversed(ordered):
        if key in needed:
            needed.update(parents[key])
    order = [key for key in ordered if key in needed]
    ground, plan = (tuple(key for key in order if (key in later) is is_later) for is_later in (False, True))
    return Selection(judged, ground, plan, one_deploy)


def own(loader: MigrationLoader) -> list[Key]:
    """Return the migrations of the project's own apps, without the engine's, after the baseline of each app."""
    return [key for key in after_baseline(loader, loader.graph.nodes) if is_own(key[0]) and key[0] != "zero_downtime"]


def after_baseline(loader: MigrationLoader, keys: Iterable[Key]) -> list[Key]:
    """Leave out what ``ZERO_DOWNTIME_LINT_AFTER`` calls legacy: the named migrations and those of their app before."""
    legacy = set()
    for app, name in conf.LINT_AFTER.items():
        try:
            last = named(loader, app, name)[0]
        except CommandError as error:
            raise ZeroDowntimeError(f"In ZERO_DOWNTIME_LINT_AFTER: {error}") from None
        legacy |= {key for key in loader.graph.forwards_plan(last) if key[0] == app}
    return [key for key in keys if key not in legacy]


def named(loader: MigrationLoader, app: str, name: str = "") -> list[Key]:
    """Return the migrations of an app, or the one whose name begins so.

    Raises:
        CommandError: if there is none, or more than one.
    """
    refuse_unknown_apps([app])
    keys: list[Key] = [key for key in loader.graph.nodes if key[0] == app]
    if not keys:
        apps = ", ".join(sorted(loader.migrated_apps))
        raise ZeroDowntimeError(f"App {app!r} has no migrations. These have: {apps}.")
    if not name:
        return keys
    try:
        return [(app, loader.get_migration_by_prefix(app, name).name)]
    except AmbiguityError:
        raise ZeroDowntimeError(f"More than one migration of {app} begins with {name!r}. Write more of it.") from None
    except KeyError:
        listed = f"They are listed by: python manage.py showmigrations {app}"
        near = meant(name, [migration for _, migration in keys], listed)
        raise ZeroDowntimeError(f"No migration of {app} begins with {name!r}. {near}") from None


def changed_since(loader: MigrationLoader, revision: str) -> list[Key]:
    """Return the migrations whose files have changed since this branch left the git revision.

    Raises:
        ZeroDowntimeError: if git does not know the revision or is not there.
    """
    root = Path(_git("rev-parse", "--show-toplevel").strip())
    base = _git("merge-base", revision, "HEAD").strip()
    names = _git("diff", "--name-only", "-z", "--diff-filter=d", base)
    names += _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", ":/")
    changed = {(root / name).resolve() for name in names.split("\0") if name}
    files = {key: file_of(migration) for key, migration in loader.graph.nodes.items()}
    return [key for key, file in files.items() if file and Path(file).resolve() in changed]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except OSError:
        raise ZeroDowntimeError("--since needs git, which is not installed. Name the migrations instead.") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ZeroDowntimeError(f"git {' '.join(arguments)} failed: {said}. Is the revision there (git fetch)?")
    return done.stdout


def unapplied(loader: MigrationLoader, applied: Collection[Key]) -> list[Key]:
    """Return the migrations that are not applied."""
    return [key for key in loader.graph.nodes if key not in applied]
