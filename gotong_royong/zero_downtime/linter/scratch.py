"""Where does a migration run? In a scratch database, which takes the place of the configured one until it is dropped.

Meanwhile ``connections[alias]`` leads there in every thread, and no other database can be reached: a migration that
forgets ``using`` writes nowhere else. It runs as a role that owns this database and nothing else. A killed run leaves
the database and the role behind. Each run holds an advisory lock on their name, and drops those whose lock nobody holds
(https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS).
"""

import os
import re
import secrets
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.module_loading import import_string

from ..conf import conf
from ..exceptions import ZeroDowntimeError, summary
from ..postgres import statements
from .server import KEEPER, own_server, programs

PREFIX = "zero_downtime_scratch_"
TEMPLATE_PREFIX = "zero_downtime_template_"
TEMPLATES_KEPT = 3  # of one project
LOOKS, PAUSE = 10, 0.003  # seconds

OWNER = "zero_downtime_scratch"  # of the databases on a server of our own, where no other lint has any

MAY_CREATE = "SELECT rolname, rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user"
LOCK_NAME = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
WAIT_FOR_NAME = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
UNLOCK_NAME = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
NAMED_LIKE = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY oid DESC"
LEFT = """
    SELECT name FROM (SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles) AS all_names (name)
    WHERE starts_with(name, %s)
"""
CREATE = 'CREATE DATABASE "%s" OWNER "%s" TEMPLATE "%s"'
SAID = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
SESSIONS = "SELECT FROM pg_stat_activity WHERE datname = %s"
DROP = 'DROP DATABASE IF EXISTS "%s" WITH (FORCE)'

EXTENSION = re.compile(rf"CREATE EXTENSION (?:IF NOT EXISTS )?({statements.NAME})")
REACHES_OUT = re.compile(r"dblink|http|pg_net|pg_cron|plproxy|.*_fdw")  # to other servers

NOT_HERE = {"pool", "prepare_threshold"}  # psycopg would deallocate our prepared statements, too

# The database is dropped in the end, so a crash of the server may lose it.
OPTIONS = (
    "-c synchronous_commit=off -c jit=off -c plan_cache_mode=force_generic_plan "
    "-c lock_timeout=0 -c statement_timeout=10s"
)

SEARCH_PATH = re.compile(r"(?:-c\s*|--)search_path=(?:\\.|\S)+")

# Migrations find the schemas of the configured search path.
MAKE_SCHEMAS = r"""
    DO $$ DECLARE name text; BEGIN
        FOR name IN
            SELECT (parse_ident(part[1]))[1]
            FROM regexp_matches(current_setting('search_path'), '"(?:[^"]|"")+"|[^",\s]+', 'g') AS part
        LOOP
            IF name <> '$user' AND name NOT LIKE 'pg\_%' AND to_regnamespace(quote_ident(name)) IS NULL THEN
                EXECUTE format('CREATE SCHEMA %I', name);
            END IF;
        END LOOP;
    END $$
"""


class Place(NamedTuple):
    """A server for scratch databases: an entry of ``DATABASES``, and whether the linter started it."""

    entry: dict[str, Any]
    is_own: bool


@contextmanager
def place(connection: BaseDatabaseWrapper, note: Callable[[str], object] = lambda text: None) -> Iterator[Place]:
    """Yield the server that ``ZERO_DOWNTIME_SCRATCH_DATABASE`` names, or start one for the block.

    Args:
        connection: the configured database, which is asked for its version.
        note: is told if the started server has another one.

    Raises:
        ZeroDowntimeError: if there is no server.
    """
    if where := conf.SCRATCH_DATABASE:
        entry = _settings(where)
        try:
            yield Place(entry, is_own=False)
        finally:
            with ExitStack() as stack:
                _drop_leftovers(_open(stack, entry, connection)[1])
        return
    configured, why = None, ""
    with ExitStack() as stack:
        try:
            _, cursor = _open(stack, connection.settings_dict, connection)
            configured = cursor.connection.info.server_version // 10_000
        except Error as error:
            why = f"for the configured server does not say which it is: {summary(error)}."
    chosen = programs(configured)
    if chosen.version != configured:
        why = why or f"for there are no programs of the configured server's {configured} here."
        note(f"Migrations are tried on PostgreSQL {chosen.version}, {why}")
    with own_server(chosen) as entry:
        yield Place(entry, is_own=True)


@contextmanager
def scratch(
    connection: BaseDatabaseWrapper,
    where: Place,
    *,
    template: str = "",
    fill: Callable[[BaseDatabaseWrapper], str] | None = None,
    recall: Callable[[str], object] = lambda said: None,
) -> Iterator[BaseDatabaseWrapper]:
    """Let the alias of the connection lead to a new database for the block, and drop it in the end.

    Migrations run as its owner, who is no superuser and may create no database and no role.

    Args:
        connection: the configured one.
        where: on which server.
        template: the name of a template on a server that the linter started, or an empty text. If the template is
            there, the database is a copy of it. If not, ``fill`` fills the database, and a copy becomes the template.
        recall: is called with what ``fill`` returned, in this run or in the one that made the template.

    Raises:
        ZeroDowntimeError: if the role may not create databases or roles there.
    """
    with ExitStack() as stack:
        is_own = where.is_own
        settings, cursor = _open(stack, where.entry, connection)
        if is_own:
            cursor.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
        is_superuser = _refuse_too_little(cursor)
        template = f"{TEMPLATE_PREFIX}{template}" if template and is_own else ""
        name = f"{PREFIX}{os.getpid()}_{uuid.uuid4().hex[:12]}"
        role = OWNER if is_own else name
        _drop_leftovers(cursor)
        cursor.execute(WAIT_FOR_NAME, [name])
        stack.callback(_drop, cursor, name)
        password = _make_role(cursor, role, is_superuser=is_superuser)
        options = {key: value for key, value in settings["OPTIONS"].items() if key != "assume_role"}
        settings = {**settings, "NAME": name, "USER": role, "PASSWORD": password, "OPTIONS": options}
        filled = bool(template) and _is_there(cursor, template)
        cursor.execute(CREATE % (name, role, template if filled else "template1"))
        with _in_place_of(connection.alias, settings) as database:
            if is_own:
                database.execute_wrappers.append(partial(_with_extensions, cursor))
            with database.cursor() as own:
                own.execute(MAKE_SCHEMAS)
            if filled:
                cursor.execute(SAID, [template])
                recall(cursor.fetchone()[0])
            elif fill:
                recall(said := fill(database))
                if template:
                    database.close()
                    _keep(cursor, name, template, said)
            yield database


def _refuse_too_little(cursor: Any) -> bool:
    """Refuse a role that may not create databases and roles; return whether it is a superuser."""
    cursor.execute(MAY_CREATE)
    role, is_superuser, *may = cursor.fetchone()
    missing = [right for right, has in zip(["CREATEDB", "CREATEROLE"], may, strict=True) if not has]
    if missing and not is_superuser:
        raise ZeroDowntimeError(
            f"On the server that ZERO_DOWNTIME_SCRATCH_DATABASE names, migrations run in a database and as a role that "
            f"are made for it, and role {role} may not make these: give it {' and '.join(missing)}, or unset the "
            "setting to have a server for each lint."
        )
    return bool(is_superuser)


def _make_role(cursor: Any, role: str, *, is_superuser: bool) -> str:
    """Create the role, or undo what migrations have changed of it; return its new password."""
    password = secrets.token_urlsafe()
    cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [role])
    if not cursor.rowcount:
        cursor.execute(f'CREATE ROLE "{role}"')
        if not is_superuser:
            cursor.execute(f'GRANT "{role}" TO CURRENT_USER')
    cursor.execute(f'ALTER ROLE "{role}" RESET ALL')
    cursor.execute(f"ALTER ROLE \"{role}\" LOGIN PASSWORD '{password}'")
    return password


def _with_extensions(keeper: Any, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Make the session's role a superuser while it creates an extension."""
    text = statements.text_of(sql, context["connection"])
    found = statements.split(text) if "extension" in text.lower() and not params else []
    if not any(_may_be_created(one) for one in found):
        return execute(sql, params, many, context)
    result = None
    for one in found:
        if not _may_be_created(one):
            result = execute(one.text, params, many, context)
            continue
        keeper.execute(f'ALTER ROLE "{OWNER}" SUPERUSER')
        try:
            result = execute(one.text, params, many, context)
        finally:
            keeper.execute(f'ALTER ROLE "{OWNER}" NOSUPERUSER')
    return result


def _may_be_created(statement: statements.Statement) -> bool:
    match = EXTENSION.match(statement.outline)
    return match is not None and not REACHES_OUT.fullmatch(statement.written(match[1]).strip('"'))


def _is_there(cursor: Any, template: str) -> bool:
    cursor.execute(NAMED_LIKE, [template])
    return bool(cursor.fetchall())


def _keep(cursor: Any, name: str, template: str, said: str) -> None:
    """Copy the filled database. The copy is renamed last, so a template is complete or not there."""
    unfinished = f"{PREFIX}{os.getpid()}_{uuid.uuid4().hex[:12]}"
    cursor.execute(WAIT_FOR_NAME, [unfinished])
    _let_sessions_end(cursor, name)
    try:
        cursor.execute(CREATE % (unfinished, KEEPER, name))
        cursor.execute(f'ALTER DATABASE "{unfinished}" ALLOW_CONNECTIONS false')
        cursor.execute(f'COMMENT ON DATABASE "{unfinished}" IS %s', [said])
        with suppress(Error):  # another run was faster
            cursor.execute(f'ALTER DATABASE "{unfinished}" RENAME TO "{template}"')
        project = template.rsplit("_", 1)[0]
        cursor.execute(NAMED_LIKE, [project])
        for (old,) in cursor.fetchall()[TEMPLATES_KEPT:]:
            with suppress(Error):  # another run copies it
                cursor.execute(f'DROP DATABASE "{old}"')
    finally:
        _drop(cursor, unfinished)


def _drop_leftovers(cursor: Any) -> None:
    cursor.execute(LEFT, [PREFIX])
    for (name,) in cursor.fetchall():
        cursor.execute(LOCK_NAME, [name])
        if cursor.fetchone()[0]:
            _drop(cursor, name)


def _let_sessions_end(cursor: Any, name: str) -> None:
    """Wait a moment for closed sessions to end. DROP and CREATE DATABASE would look again only after 100 ms."""
    for _ in range(LOOKS):
        cursor.execute(SESSIONS, [name])
        time.sleep(PAUSE)  # a session that is no longer listed may still be ending
        if not cursor.rowcount:
            return


def _drop(cursor: Any, name: str) -> None:
    with suppress(Error):
        _let_sessions_end(cursor, name)
        cursor.execute(DROP % name)
        cursor.execute(f'DROP ROLE IF EXISTS "{name}"')
        cursor.execute(UNLOCK_NAME, [name])


def _open(stack: ExitStack, settings: dict[str, Any], like: BaseDatabaseWrapper) -> tuple[dict[str, Any], Any]:
    options = {key: value for key, value in settings.get("OPTIONS", {}).items() if key not in NOT_HERE}
    path = SEARCH_PATH.search(str(like.settings_dict.get("OPTIONS", {}).get("options", "")))
    options["options"] = " ".join(filter(None, [path and path[0], options.get("options"), OPTIONS]))
    settings = {**like.settings_dict, "PASSWORD": "", "PORT": "", **settings, "OPTIONS": options}
    server = like.copy()
    server.settings_dict = settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # there may be no database postgres: another one will do
        return settings, stack.enter_context(server._nodb_cursor())


def _settings(where: str) -> dict[str, Any]:
    """Return an entry of DATABASES: the one of that alias, or what the callable of that dotted path returns."""
    if where in connections.settings:
        return dict(connections.settings[where])
    try:
        return dict(import_string(where)())
    except ImportError:
        raise ImproperlyConfigured(
            f"ZERO_DOWNTIME_SCRATCH_DATABASE is {where!r}, which is neither an alias in DATABASES nor the path of a "
            "function that returns such an entry. Set it to one of these, or remove it."
        ) from None


@contextmanager
def _in_place_of(alias: str, settings: dict[str, Any]) -> Iterator[BaseDatabaseWrapper]:
    """Let the alias lead to another database, in all threads, and let the other aliases lead to none."""
    before = dict(connections.settings)
    opened = {name: connections[name] for name in before}
    for name in before:
        nowhere = {**before[name], "NAME": f"{alias} is being linted, {name} is out of reach", "HOST": os.devnull}
        connections.settings[name] = settings if name == alias else nowhere
        del connections[name]
    try:
        yield connections[alias]
    finally:
        with suppress(Error):
            connections[alias].close()
        for name in before:
            connections.settings[name] = before[name]
            connections[name] = opened[name]
