"""What does each statement do to the tables of before? The observer sees every statement that a connection sends.

Inside the statement's own transaction, ``pg_locks`` shows what it holds, a changed file node that it rewrote a table,
and the statistics of the transaction which tables it scanned
(https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-FUNCTIONS). A statement that may run in
no transaction is held up until a second session has seen its locks.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import psycopg
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

from ..postgres import statements
from ..postgres.locks import sqlstate
from .facts import MODES, Catalog, Lock, Statement, Table, changes, strongest
from .lock_probe import probed
from .queries import ENUMS, OIDS, REPORT, REPORTS_SINCE, TABLES, TABLES_OF_WORDS, prepare, table_of

NO_TRANSACTION_PLEASE = {"25001", "2D000"}  # active_sql_transaction, invalid_transaction_termination

# Where an index serves a statement that changes rows, it shall not be taken for a scan because the table is small, nor
# a scan of all of an index for none.
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
    """A migration changes more than its database; like Ctrl-C, no ``except Exception`` of its own catches that."""


class Counts(NamedTuple):
    scans: int = 0
    rows: int = 0


class Observer:
    """Watches one connection while ``watching``; ``statements`` is what it has seen.

    Args:
        connection: that to the scratch database.

    Attributes:
        catalog: all tables as they are now, those of before and those since.
        of_before: the OIDs of the tables of before.
        operation: which operation sends the statements that come now.
        put_off: which operation put off a statement to the end of the migration.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self._heard: Any = None
        self.catalog: dict[int, Table] = self.tables()
        self.of_before = set(self.catalog)
        self.statements: list[Statement] = []
        self.operation = 0
        self.put_off: dict[str, int] = {}
        self._transaction = 0
        self._touched: set[int] = set()
        self._unsure = True  # whether something may have counted that was not seen
        self._reported = False  # whether all counters are 0, or will be at the end of the transaction
        self._held: set[tuple[int, str]] = set()
        self._counts: dict[int, Counts] = {}
        self._notices: list[str] = []
        self._blind = False
        self._has_moved = False

    @contextmanager
    def watching(self, *, blind: bool = False) -> Iterator[None]:
        """See each statement, and let none be about a database or the server.

        Args:
            blind: see nothing else.
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
        """Look at these tables again, and where they or their columns have other names, at what points to them."""
        if oids:
            old = {oid: table for oid in oids if (table := self.catalog.pop(oid, None))}
            self.catalog.update(self.tables(sorted(oids)))
            now = {oid: table for oid in old if (table := self.catalog.get(oid))}
            renamed = {old[oid].name for oid, table in now.items() if old[oid].has_other_names(table)}
            self.refresh({oid for oid, table in self.catalog.items() if renamed & table.targets} if renamed else set())

    def enums(self) -> frozenset[tuple[str, str]]:
        return frozenset(tuple(row) for row in self._session().execute(ENUMS).fetchall())

    def settle(self) -> dict[int, Table]:
        """Look at the tables that are new, and at those that were made in this migration; return all tables."""
        self.refresh(self._touched)
        self._touched = set()
        return dict(self.catalog)

    def come_back(self) -> None:
        """Outside of a transaction, see the tables by the names that they have for the next session."""
        if self._has_moved:
            self._session().execute("RESET search_path")
            self.refresh(set(self.tables()) | set(self.catalog))
            self._has_moved = False

    @contextmanager
    def rehearsal(self, *, alone: bool) -> Iterator[None]:
        """Mark what comes as rehearsed; what it locks and changes is undone by the end of the block.

        Args:
            alone: whether each statement will in earnest have a transaction of its own.
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
        """Let the session do something that no statement of the migration is to be blamed for."""
        wrappers, self.connection.execute_wrappers = self.connection.execute_wrappers, []
        try:
            work()
        finally:
            self.connection.execute_wrappers = wrappers
        self._held = {(oid, mode) for oid, mode, *_ in self._look()}
        self._unsure = True

    def rolled_back(self, catalog: Catalog) -> None:
        """Be told that the transaction is undone and the catalog as it was."""
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

        def send_each() -> Any:
            """Send what is one transaction, statement by statement: PostgreSQL does the same with a string."""
            if params or len(found) < 2 or any(one.controls_transaction for one in found):
                return self._one(send, text)
            for one in found:
                result = self._one(functools.partial(execute, one.text, params, many, context), one.text)
            return result

        if any(one.is_about_more_than_a_database and not PATH_OF_OTHERS.match(one.outline) for one in found):
            raise OutOfBounds
        if all(one.concerns_savepoint for one in found):
            return send()
        if not (session.autocommit and self._status() == TransactionStatus.IDLE):
            return send_each()
        if not params and len(pieces := statements.pieces(text)) > 1:  # as migrate sends it
            for piece in pieces:
                self._observe(execute, piece, params, many, context)
            return None
        if not params and len(found) > 1 and found[0].begins_transaction and found[-1].ends_transaction:
            for one in found:
                if one.controls_transaction and not one.concerns_savepoint:
                    session.execute(one.text)
                    self._begin()
                else:
                    self._one(functools.partial(execute, one.text, params, many, context), one.text)
            return None
        self.report_counts()
        session.execute("BEGIN")
        self._begin()
        try:
            result = send_each()
        except Error as error:
            session.execute("ROLLBACK")
            if sqlstate(error) in NO_TRANSACTION_PLEASE:
                return self._watched(send, text)
            raise
        if self._status() == TransactionStatus.INTRANS:
            session.execute("COMMIT")
        return result

    def _look(self) -> list[Any]:
        """Return what the transaction has locked and counted, and let PostgreSQL report the counters at its end."""
        _, *rows = self._ask("observe")
        self._reported = self._session().info.server_version >= REPORTS_SINCE
        return rows

    def _status(self) -> TransactionStatus:
        return self._session().info.transaction_status

    def _begin(self) -> None:
        """Know that a transaction begins, which has no lock yet."""
        self._transaction, self._held = self._transaction + 1, set()
        self._unsure = not self._reported
        self._counts = {}

    def report_counts(self) -> None:
        """Outside of a transaction, let PostgreSQL report its counters, so that the next transaction begins with 0."""
        if not self._reported and self._session().info.server_version >= REPORTS_SINCE:
            self._session().execute(f"SELECT {REPORT}")
            self._reported = True

    def _count(self, oids: Collection[int]) -> None:
        """Look at the counters, which may have moved when nobody looked."""
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
        elif changes_rows:  # what a cursor has scanned since its statement is not this one's scan
            self._count({oid for oid, _ in self._held})
        if changes_rows:
            session.execute(PLAN_AS_IF_LARGE.format("off"))
        self._notices.clear()
        self._unsure, self._reported = True, False
        result = execute()
        notices = tuple(self._notices)
        operation = self.put_off.get(text, self.operation)
        if session.info.transaction_status != TransactionStatus.INTRANS:
            self.refresh(self._made_or_dropped() | self.of_before)
            ended = self.connection.in_atomic_block
            self.statements.append(
                Statement(operation, text, self._transaction, notices=notices, ends_transaction=ended)
            )
            return result
        if changes_rows:
            session.execute(PLAN_AS_IF_LARGE.format("on"))
        self._note(self._look(), text, operation, notices)
        return result

    def _note(self, rows: list[Any], text: str, operation: int, notices: tuple[str, ...]) -> None:
        """Make a statement of the locks and counts that its transaction has now."""
        names = {oid: self.catalog[oid].name for oid, *_ in rows if oid in self.of_before and oid in self.catalog}
        held = {(oid, mode) for oid, mode, *_ in rows}
        taken = {(oid, mode) for oid, mode in held - self._held if oid in names}
        nodes = {oid: node for oid, _, node, *_ in rows}
        counts = {oid: Counts(scans, changed) for oid, _, _, scans, changed in rows}
        more = {
            oid: Counts(
                *(max(now - then, 0) for now, then in zip(counts[oid], self._counts.get(oid, Counts()), strict=True))
            )
            for oid in names
        }
        strong = {oid for oid, mode in held if mode in STRONGER_THAN_A_WRITE}
        found = statements.split(text)
        moves = any("search_path" in one.text.lower() and not one.outline.startswith("SET LOCAL") for one in found)
        of_all = moves or any(one.outline.startswith("ALTER SCHEMA") for one in found)
        changed = self.of_before & self.catalog.keys() if of_all else strong & set(names)
        old = {oid: self.catalog[oid] for oid in changed}
        self._touched |= (strong | set(nodes) - set(self.catalog)) - set(names)
        if moves:
            self._touched |= changed
            self._has_moved = True
        self.refresh(set(old))
        fresh = {oid: self.catalog[oid] for oid in old if oid in self.catalog}
        writing, words = _changes_rows(text), set(re.findall(r"\w+", text))

        def is_parent(oid: int) -> bool:
            """Whether a new foreign key points here: its rows are looked up, by index once there are many."""
            return (oid, PARENT) in taken and old[oid] == fresh.get(oid)

        self.statements.append(
            Statement(
                operation,
                text,
                self._transaction,
                takes=strongest(Lock(names[oid], mode) for oid, mode in sorted(taken)),
                holds=strongest(Lock(names[oid], mode) for oid, mode in sorted(held) if oid in names),
                scans=tuple(names[oid] for oid in more if more[oid].scans and not is_parent(oid)),
                rewrites=tuple(old[oid].name for oid in old if nodes.get(oid) and nodes[oid] != old[oid].node),
                writes=tuple(
                    name
                    for oid, name in names.items()
                    if (oid, WRITE) in taken or more[oid].rows or (writing and (oid, WRITE) in held and name in words)
                ),
                changes=tuple(changes(old, fresh)),
                rows=sum(count.rows for count in more.values()),
                notices=notices,
            )
        )
        self._held, self._unsure = held, False
        self._counts = {oid: count for oid, count in {**self._counts, **counts}.items() if any(count)}

    def _watched(self, execute: Any, text: str) -> Any:
        """Send a statement that may run in no transaction, while a second session holds it up and looks."""
        self._unsure, self._reported = True, False
        if self._blind:
            return execute()
        words = list(set(re.findall(r"\w+", text)))
        oids = {row[0] for row in self._session().execute(TABLES_OF_WORDS, [words]).fetchall()}
        old = {oid: self.catalog[oid] for oid in oids & self.of_before if oid in self.catalog}
        self._notices.clear()
        with probed(self.connection, [table.name for table in old.values()]) as seen:
            result = execute()
        self._transaction += 1
        self.refresh(self._made_or_dropped() | oids)
        names = {oid: self.catalog[oid].name for oid in self.of_before if oid in self.catalog}
        locks = strongest(Lock(names[oid], mode) for oid, mode in sorted(seen) if oid in names)
        fresh = {oid: self.catalog[oid] for oid in old if oid in self.catalog}
        self.statements.append(
            Statement(
                self.operation,
                text,
                self._transaction,
                takes=locks,
                holds=locks,
                rewrites=tuple(
                    table.name for oid, table in old.items() if oid in fresh and fresh[oid].node != table.node
                ),
                changes=tuple(changes(old, fresh)),
                notices=tuple(self._notices),
            )
        )
        return result


def _changes_rows(sql: str) -> bool:
    return any(one.verb in CHANGES_ROWS for one in statements.split(sql))


def _here(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """Let the search path of a role or a database be that of this session: it is where they find their tables."""
    text = statements.text_of(sql, context["connection"])
    if params or "search_path" not in text.lower():
        return execute(sql, params, many, context)
    found = ((one, PATH_OF_OTHERS.match(one.outline)) for one in statements.split(text))
    sql = ";".join(one.written(path["path"]) if path else one.text.rstrip("; \n") for one, path in found)
    return execute(sql, params, many, context)
