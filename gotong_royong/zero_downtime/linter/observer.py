"""What does each statement do to the tables of before? The observer sees every statement that a connection sends.

It looks inside the statement's own transaction. ``pg_locks`` shows what the transaction holds. A new file node shows
that the statement rewrote a table. The statistics of the transaction show which tables it scanned
(https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-FUNCTIONS). A statement that may run in
no transaction waits until a second session has seen its locks.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from ..postgres import statements
from ..postgres.locks import sqlstate
from .facts import MODES, Catalog, Lock, Statement, Table, changes, strongest
from .lock_probe import probed
from .queries import ENUMS, OIDS, REPORT, REPORTS_SINCE, TABLES, TABLES_OF_WORDS, Counts, Seen, prepare, table_of

NO_TRANSACTION_PLEASE = {"25001", "2D000"}  # active_sql_transaction, invalid_transaction_termination

# Small tables get the plans of large ones: an index is used where it serves the statement, and no scan of a whole index
# takes the place of a table scan.
PLAN_AS_IF_LARGE = "SET LOCAL enable_seqscan = {0}; SET LOCAL enable_indexonlyscan = {0}"
CHANGES_ROWS = {"INSERT", "UPDATE", "DELETE", "MERGE", "WITH"}
FORGETS = {"DEALLOCATE", "DISCARD"}  # what was prepared
WRITE, *STRONGER = MODES[2:]
PARENT = "ShareRowExclusiveLock"
STRONGER_THAN_A_WRITE = set(STRONGER)

PATH_OF_OTHERS = re.compile(
    rf"ALTER (?:ROLE|USER|DATABASE) {statements.NAME} (?:IN DATABASE {statements.NAME} )?"
    r"(?P<path>SET SEARCH_PATH (?:TO|=) .*|RESET SEARCH_PATH\b.*)"
)


class OutOfBounds(KeyboardInterrupt):
    """A migration changes more than its database. As with Ctrl-C, no ``except Exception`` of its own catches this."""


class Observer:
    """Watches one connection while ``watching``; ``statements`` is what it has seen.

    Args:
        connection: that to the scratch database.

    Attributes:
        catalog: all tables as they are now, those of before and those since.
        of_before: the OIDs of the tables of before.
        operation: which operation sends the next statements.
        deferred: which operation deferred a statement to the end of the migration.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self._heard: Any = None
        self.catalog: dict[int, Table] = self.tables()
        self.of_before = set(self.catalog)
        self.statements: list[Statement] = []
        self.operation = 0
        self.deferred: dict[str, int] = {}
        self._transaction = 0
        self._touched: set[int] = set()
        self._unsure = True  # whether the counters may have moved unseen
        self._reported = False  # whether all counters are 0, or will be at the end of the transaction
        self._held: set[tuple[int, str]] = set()
        self._counts: dict[int, Counts] = {}
        self._notices: list[str] = []
        self._blind = False
        self._has_moved = False

    def begin(self) -> dict[int, Table]:
        """Forget the statements of the migration before; return all tables."""
        self.statements, self.deferred, self.operation = [], {}, 0
        self._report_counts()
        return dict(self.catalog)

    @contextmanager
    def watching(self, *, blind: bool = False) -> Iterator[None]:
        """See each statement, and refuse those about a database or the server.

        Args:
            blind: refuse only.
        """
        self._blind = blind
        with self.connection.execute_wrapper(self._observe):
            yield

    def tables(self, oids: list[int] | None = None) -> dict[int, Table]:
        """Return the tables as they are now, for this session. Takes no lock on them."""
        rows = self._ask("these_tables", oids) if oids else self._session().execute(TABLES).fetchall()
        return {oid: table_of(*row) for oid, *row in rows}

    def _made_or_dropped(self) -> set[int]:
        return {oid for (oid,) in self._session().execute(OIDS).fetchall()} ^ self.catalog.keys()

    def refresh(self, oids: set[int]) -> None:
        """Read these tables again; where one or its columns have new names, read the tables that point to it, too."""
        if oids:
            old = {oid: table for oid in oids if (table := self.catalog.pop(oid, None))}
            self.catalog.update(self.tables(sorted(oids)))
            now = {oid: table for oid in old if (table := self.catalog.get(oid))}
            renamed = {old[oid].name for oid, table in now.items() if old[oid].has_other_names(table)}
            self.refresh({oid for oid, table in self.catalog.items() if renamed & table.targets} if renamed else set())

    def enums(self) -> frozenset[tuple[str, str]]:
        return frozenset(tuple(row) for row in self._session().execute(ENUMS).fetchall())

    def settle(self) -> dict[int, Table]:
        """Read the tables again that are new in this migration; return all tables."""
        self.refresh(self._touched)
        self._touched = set()
        return dict(self.catalog)

    def refresh_all(self) -> None:
        self.refresh(set(self.tables()) | set(self.catalog))

    def reset_search_path(self) -> None:
        """Outside of a transaction, name the tables as the next session names them."""
        if self._has_moved:
            self._session().execute("RESET search_path")
            self.refresh_all()
            self._has_moved = False

    @contextmanager
    def rehearsal(self, *, alone: bool) -> Iterator[None]:
        """Mark the statements of the block as rehearsed. The caller rolls them back at its end.

        Args:
            alone: whether ``migrate`` runs each statement in a transaction of its own.
        """
        catalog, held, touched, done = dict(self.catalog), self._held, self._touched, len(self.statements)
        try:
            yield
        finally:
            self.catalog, self._held, self._touched, self._unsure = catalog, held, touched, True
            for number, one in enumerate(self.statements[done:], done):
                transaction, holds = (-number - 1, one.takes) if alone else (one.transaction, one.holds)
                self.statements[number] = replace(one, rehearsed=True, transaction=transaction, holds=holds)

    def look_away(self, work: Callable[[], object]) -> None:
        """Do something in the session that no statement of the migration is blamed for."""
        wrappers, self.connection.execute_wrappers = self.connection.execute_wrappers, []
        try:
            work()
        finally:
            self.connection.execute_wrappers = wrappers
        self._held = self._look().held
        self._unsure = True

    def rolled_back(self, catalog: Catalog) -> None:
        """Go back to the catalog of before the transaction, which was rolled back."""
        self.catalog, self._touched = dict(catalog), set()

    def _session(self) -> "psycopg.Connection[Any]":
        self.connection.ensure_connection()
        session: psycopg.Connection[Any] = self.connection.connection
        if session is not self._heard:
            session.add_notice_handler(self._hear)
            self._prepare(session)
            self._heard = session
        return session

    def _prepare(self, session: "psycopg.Connection[Any]") -> None:
        session.execute(prepare(session.info.server_version))

    def _ask(self, question: str, oids: Iterable[int] = ()) -> list[Any]:
        values = f"('{{{','.join(map(str, oids))}}}')" if oids else ""
        return self._session().execute(f"EXECUTE zero_downtime_{question} {values}").fetchall()

    def _hear(self, notice: Any) -> None:
        self._notices.append(f"{notice.sqlstate} {notice.message_primary}")

    def _observe(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        session, text = self._session(), statements.text_of(sql, self.connection)
        found = statements.split(text)
        execute = functools.partial(_here, execute)

        def send() -> Any:
            result = execute(sql, params, many, context)
            if any(one.verb in FORGETS for one in found):
                self._prepare(session)
            return result

        def send_one(one: statements.Statement) -> Any:
            return self._one(functools.partial(execute, one.text, params, many, context), one.text)

        def send_each() -> Any:
            """Send what is one transaction, statement by statement: PostgreSQL does the same with a string."""
            if params or len(found) < 2 or any(one.controls_transaction for one in found):
                return self._one(send, text)
            return [send_one(one) for one in found][-1]

        if any(one.is_about_more_than_a_database and not PATH_OF_OTHERS.match(one.outline) for one in found):
            raise OutOfBounds
        if all(one.concerns_savepoint for one in found):
            return send()
        if not (session.autocommit and self._status() == TransactionStatus.IDLE):
            return send_each()
        if not params and len(pieces := statements.pieces(text)) > 1:  # as migrate sends it
            return [self._observe(execute, piece, params, many, context) for piece in pieces][-1]
        if not params and len(found) > 1 and found[0].begins_transaction and found[-1].ends_transaction:
            return self._in_its_own_transaction(found, send_one)
        try:
            return self._in_a_transaction(send_each)
        except Error as error:
            if sqlstate(error) in NO_TRANSACTION_PLEASE:
                return self._watched(send, text)
            raise

    def _in_its_own_transaction(self, found: list[statements.Statement], send: Callable[[Any], object]) -> None:
        """Send statements of which the first begins a transaction and the last ends it."""
        for one in found:
            if one.controls_transaction and not one.concerns_savepoint:
                self._session().execute(one.text)
                self._begin()
            else:
                send(one)

    def _in_a_transaction(self, send: Callable[[], Any]) -> Any:
        """Send in a transaction of ours what is one of its own."""
        self._report_counts()
        self._session().execute("BEGIN")
        self._begin()
        try:
            result = send()
        except Error:
            self._session().execute("ROLLBACK")
            raise
        if self._status() == TransactionStatus.INTRANS:
            self._session().execute("COMMIT")
        return result

    def _look(self) -> Seen:
        """Return what the transaction has locked and counted, and let PostgreSQL report the counters at its end."""
        _, *rows = self._ask("observe")
        self._reported = self._session().info.server_version >= REPORTS_SINCE
        return Seen({(oid, mode) for oid, mode, *_ in rows}, {oid: Counts(*counts) for oid, _, *counts in rows})

    def _status(self) -> TransactionStatus:
        return self._session().info.transaction_status

    def _begin(self) -> None:
        """Begin a transaction, which has no lock yet."""
        self._transaction, self._held = self._transaction + 1, set()
        self._unsure = not self._reported
        self._counts = {}

    def _report_counts(self) -> None:
        """Outside of a transaction, let PostgreSQL report its counters, so that the next transaction begins with 0."""
        if not self._reported and self._session().info.server_version >= REPORTS_SINCE:
            self._session().execute(f"SELECT {REPORT}")
            self._reported = True

    def _count(self, oids: Collection[int]) -> None:
        """Read the counters, which may have moved unseen."""
        if oids:
            self._counts |= {oid: Counts(*counts) for oid, *counts in self._ask("counted", oids) if any(counts)}

    def _one(self, execute: Callable[[], Any], text: str) -> Any:
        """Send a statement in a transaction and note what it did there."""
        session = self._session()
        if self._status() == TransactionStatus.INERROR:
            return execute()
        if self._status() == TransactionStatus.IDLE:
            self._begin()
        if self._blind:
            return execute()
        changes_rows = _changes_rows(text)
        if self._unsure:
            self._count(self.catalog)
        elif changes_rows:  # an open cursor may have scanned since its statement
            self._count({oid for oid, _ in self._held})
        if changes_rows:
            session.execute(PLAN_AS_IF_LARGE.format("off"))
        self._notices.clear()
        self._unsure, self._reported = True, False
        result = execute()
        operation = self.deferred.get(text, self.operation)
        if session.info.transaction_status != TransactionStatus.INTRANS:
            self.refresh(self._made_or_dropped() | self.of_before)
            self._note(text, operation, ends_transaction=self.connection.in_atomic_block)
            return result
        if changes_rows:
            session.execute(PLAN_AS_IF_LARGE.format("on"))
        self._compare(self._look(), text, operation)
        return result

    def _compare(self, seen: Seen, text: str, operation: int) -> None:
        """Note a statement by the locks and counts of its transaction since the statement before."""
        names = {oid: self.catalog[oid].name for oid in seen.counts if oid in self.of_before and oid in self.catalog}
        taken = {(oid, mode) for oid, mode in seen.held - self._held if oid in names}
        counts = {oid: seen.counts[oid].since(self._counts.get(oid, Counts())) for oid in names}
        old = self._read_again(seen, text)

        def is_parent(oid: int) -> bool:
            """Whether a new foreign key points here: its rows are looked up, by index once there are many."""
            return (oid, PARENT) in taken and old[oid] == self.catalog.get(oid)

        self._note(
            text,
            operation,
            old,
            takes=strongest(Lock(names[oid], mode) for oid, mode in sorted(taken)),
            holds=strongest(Lock(names[oid], mode) for oid, mode in sorted(seen.held) if oid in names),
            scans=tuple(name for oid, name in names.items() if counts[oid].scans and not is_parent(oid)),
            writes=self._written(text, names, counts, seen.held),
            rows=sum(count.rows for count in counts.values()),
        )
        self._held, self._unsure = seen.held, False
        self._counts = {oid: count for oid, count in {**self._counts, **seen.counts}.items() if any(count)}

    def _read_again(self, seen: Seen, text: str) -> dict[int, Table]:
        """Read the tables of before again that a statement may have changed; return them as they were."""
        found = statements.split(text)
        moves = any("search_path" in one.text.lower() and not one.outline.startswith("SET LOCAL") for one in found)
        strong = {oid for oid, mode in seen.held if mode in STRONGER_THAN_A_WRITE}
        known = self.of_before & self.catalog.keys()
        may_rename_all = moves or any(one.outline.startswith("ALTER SCHEMA") for one in found)
        changed = known if may_rename_all else strong & known
        old = {oid: self.catalog[oid] for oid in changed}
        self._touched |= (strong | seen.counts.keys() - self.catalog.keys()) - (known & seen.counts.keys())
        if moves:
            self._touched |= changed
            self._has_moved = True
        self.refresh(changed)
        return old

    def _written(
        self, text: str, names: dict[int, str], counts: dict[int, Counts], held: set[tuple[int, str]]
    ) -> tuple[str, ...]:
        """Return the tables whose rows a statement has changed, or would change if it found any."""
        new = {oid for oid, mode in held - self._held if mode == WRITE}
        named = set(re.findall(r"\w+", text)) if _changes_rows(text) else set()
        return tuple(
            name
            for oid, name in names.items()
            if oid in new or counts[oid].rows or ((oid, WRITE) in held and name in named)
        )

    def _note(self, text: str, operation: int, old: Mapping[int, Table] = {}, **seen: Any) -> None:
        """Add a statement to those that were seen.

        Args:
            old: the tables that it may have changed, as they were.
        """
        now = {oid: self.catalog[oid] for oid in old if oid in self.catalog}
        rewrites = tuple(old[oid].name for oid, table in now.items() if table.node not in {None, old[oid].node})
        became, notices = tuple(changes(old, now)), tuple(self._notices)
        self.statements.append(
            Statement(operation, text, self._transaction, rewrites=rewrites, changes=became, notices=notices, **seen)
        )

    def _watched(self, execute: Any, text: str) -> Any:
        """Send a statement that may run in no transaction, while a second session makes it wait and looks."""
        self._unsure, self._reported = True, False
        if self._blind:
            return execute()
        words = {*re.findall(r"\w+", text.lower()), *re.findall(r"\w+", text), *re.findall(r'"([^"]+)"', text)}
        oids = {row[0] for row in self._session().execute(TABLES_OF_WORDS, [list(words)]).fetchall()}
        old = {oid: self.catalog[oid] for oid in oids & self.of_before if oid in self.catalog}
        self._notices.clear()
        with probed(self.connection, [table.name for table in old.values()]) as seen:
            result = execute()
        self._transaction += 1
        self.refresh(self._made_or_dropped() | oids)
        names = {oid: self.catalog[oid].name for oid in self.of_before if oid in self.catalog}
        locks = strongest(Lock(names[oid], mode) for oid, mode in sorted(seen) if oid in names)
        self._note(text, self.operation, old, takes=locks, holds=locks)
        return result


def _changes_rows(sql: str) -> bool:
    return any(one.verb in CHANGES_ROWS for one in statements.split(sql))


def _here(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Where a migration sets the search path of a role or a database, set that of this session instead."""
    text = statements.text_of(sql, context["connection"])
    if params or "search_path" not in text.lower():
        return execute(sql, params, many, context)
    found = ((one, PATH_OF_OTHERS.match(one.outline)) for one in statements.split(text))
    sql = ";".join(one.written(path["path"]) if path else one.text.rstrip("; \n") for one, path in found)
    return execute(sql, params, many, context)
