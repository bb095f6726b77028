"""What can go wrong in a run, and what does the user do next?

Each error is a Django ``CommandError``: the command prints the message without a traceback and exits with 1.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

import psycopg
from django.core.management import CommandError
from django.db import Error

# The parts of a PostgreSQL error after its message; each lasts to the end of the line.
DETAIL = re.compile(r"\s*\b(?:DETAIL|CONTEXT|HINT|QUERY): .*")

# What to do about PostgreSQL's errors, by their codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
ADVICE = {
    "42501": "Use the role that owns the tables, or GRANT this role the missing right.",
    "25006": "The server is a standby, or the database is read-only. Use one that takes writes.",
    "55P03": "Another session holds the lock. End that session, or try again later: "
    "SELECT pid, query FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE mode = 'AccessExclusiveLock' finds it.",
}

WAYS_OUT = (
    "Rename or drop the existing one, or change the migration, and migrate again. If the migration was "
    "applied before and only its record is lost, record it: migrate APP NAME --fake, or --fake-initial."
)


class ZeroDowntimeError(CommandError):
    """The engine refuses something or gives it up."""

    kept = ""
    """The text for the ledger, if the message may quote a row's data; else empty."""

    def saying(self, text: str, kind: "type[ZeroDowntimeError] | None" = None) -> "ZeroDowntimeError":
        """Return a copy with another text, of another class if ``kind`` is given; ``kept`` stays."""
        other = ZeroDowntimeError.__new__(kind or type(self), text)
        vars(other).update(vars(self))
        return other


class LockNotObtained(ZeroDowntimeError):
    """No try got its lock within ``ZERO_DOWNTIME_PATIENCE``."""


class BlockedTooLong(ZeroDowntimeError):
    """A session waited for us longer than ``ZERO_DOWNTIME_BLOCK_BUDGET``, so our statement was canceled."""


class GaveWay(ZeroDowntimeError):
    """The engine interrupted a migration's Python, which committed nothing and runs again."""


class Interrupted(ZeroDowntimeError):
    """A migration's Python, or a CALL or DO, did not finish and may have committed a part."""


class HalfCommitted(ZeroDowntimeError):
    """A migration's Python ended the transaction around it."""

    def __init__(self, error: str) -> None:
        then = f" After that: {error.rstrip('.')}." if error else ""
        super().__init__(
            "Its code ended the transaction around it. What it did until then may stay and is not undone."
            f"{then} Repair what is half done, remove the COMMIT or write atomic = False, and migrate again."
        )


class Unwatched(ZeroDowntimeError):
    """The watchdog is gone, so our statement was canceled."""

    @classmethod
    def lost(cls, lost: str, refused: str) -> "Unwatched":
        return cls(
            f"The watchdog's session was lost ({lost}), and another could not be opened: {refused}. "
            "No statement runs without the watchdog. Once the server takes new connections, migrate again."
        )

    @classmethod
    def failed(cls, error: str) -> "Unwatched":
        return cls(
            f"The watchdog, which sees who waits for the migration, failed: {error}. "
            "No statement runs without it. Correct the cause, and migrate again."
        )


class StepFailed(ZeroDowntimeError):
    """A migration raised an error that is not the engine's."""


class ReceiverFailed(ZeroDowntimeError):
    """A receiver of pre_migrate or post_migrate raised an error."""


class RolledBack(ZeroDowntimeError):
    """A step failed, and the engine undid what its run had applied."""


class NoLedger(ZeroDowntimeError):
    """The ledger's tables do not exist and cannot be made."""


class LedgerNotReadable(ZeroDowntimeError):
    """The ledger's tables exist, but this role may not read them.

    Args:
        tables: the unreadable ones, quoted and with their schema.
        role: its name, quoted.
    """

    def __init__(self, tables: Iterable[str], role: str) -> None:
        names = ", ".join(tables)
        super().__init__(
            f"This role may not read the ledger: it lacks SELECT on {names}. "
            f"Use the role that owns them, or GRANT SELECT ON {names} TO {role}."
        )


class DefinitionDiffers(ZeroDowntimeError):
    """An object that a migration makes exists already and differs."""

    def __init__(self, kind: str, name: str, found: str, wanted: str) -> None:
        self.kind, self.name, self.found, self.wanted = kind, name, found, wanted
        super().__init__(
            f"The {kind} {name} exists already and differs.\n  found:  {found}\n  wanted: {wanted}\n{WAYS_OUT}"
        )


class OwnTransaction(ZeroDowntimeError):
    """SQL of an atomic migration would end its transaction."""

    def __init__(self, sql: str) -> None:
        super().__init__(
            f"The migration is one transaction, and its SQL would end that: {' '.join(sql.split())[:200]}. "
            "That was not executed. Write atomic = False in the migration, or remove the COMMIT."
        )


class LeftOpen(ZeroDowntimeError):
    """An operation of a migration with ``atomic = False`` left a transaction open."""

    def __init__(self) -> None:
        super().__init__(
            "It left a transaction open, which was rolled back. End the transaction in the same operation with "
            "COMMIT, or remove what begins it (BEGIN, set_autocommit(False)), and migrate again."
        )


class StillNeeded(ZeroDowntimeError):
    """A drop would take along dependent objects that the migration does not name."""

    def __init__(self, dropped: str, dependents: Iterable[str]) -> None:
        super().__init__(
            f"Dropping {dropped} would also drop what depends on it: {', '.join(dependents)}. It was not dropped. "
            "Drop that first, in this migration or an earlier one, with a reverse that makes it again."
        )


class HistoryLost(ZeroDowntimeError):
    """The tables of an app exist, but no record says that its migrations are applied."""

    def __init__(self, made_by: object, table: str, data: object, app: str) -> None:
        super().__init__(
            f"No migration of the app {app} is recorded as applied, but the table {table}, which {made_by} makes, "
            f"exists, and the ledger does not know who made it. The SQL or Python of {data} would run a second time. "
            "Nothing was changed. Restore django_migrations from the backup that the tables come from. Or record what "
            f"is applied: migrate {app} NAME --fake, or --fake-initial if only the tables exist. If it is another "
            "table of the same name, rename or drop it."
        )


class EditedHalfway(ZeroDowntimeError):
    """A migration is half done, and its file no longer says what was done."""


class HalfDone(ZeroDowntimeError):
    """A half done migration would be recorded as done."""


class TransactionPooling(ZeroDowntimeError):
    """The connection goes through a proxy that gives each transaction another session."""

    def __init__(self) -> None:
        super().__init__(
            "This database connection goes through a proxy that pools transactions (such as PgBouncer with "
            "pool_mode = transaction). Session settings and the lock that keeps deploys apart do not work there. "
            "Set DATABASE_URL to the server itself, or to a pool of sessions, and run this again."
        )


class Nested(ZeroDowntimeError):
    """A command would wait for its own process."""

    def __init__(self, run: str) -> None:
        super().__init__(
            "A migration or a thread called a command that changes the schema, while its own process already works "
            f"on this database ({run}). It would wait for itself. Make the migration depend on the others "
            "(dependencies = …), or call the command after the run."
        )


class LockLost(ZeroDowntimeError):
    """The session with the runner's lock has ended, and another run works on the database."""

    def __init__(self) -> None:
        super().__init__(
            "The session that keeps other runs away was ended, and another run now works on this database. "
            "This run has stopped. Once the other has ended, migrate again."
        )


class WithinTransaction(ZeroDowntimeError):
    """The caller of a command has a transaction open."""

    def __init__(self) -> None:
        super().__init__(
            "This command is called within a transaction (transaction.atomic). A rollback of that would make the "
            "ledger wrong. Nothing was changed. Call the command outside of a transaction."
        )


class NotUndoable(ZeroDowntimeError):
    """A rollback cannot be done, or destroys something without consent."""


class ImpossibleStage(ZeroDowntimeError):
    """A pre-deploy migration needs a post-deploy one, or a stage has no such name."""


class NoWayForNewCode(ZeroDowntimeError):
    """A field goes that new code no longer names, while the database still wants a value for it."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"{field} is NOT NULL and has no default that fits every row. The new code no longer names it, so its "
            "INSERT would fail until the column is gone. Write null=True or a default into the model, run "
            "makemigrations, and remove the field then. Django's own operation: makemigrations --no-rewrite.",
            returncode=3,
        )


class BackupFailed(ZeroDowntimeError):
    """The backup before a run failed, so the run did not begin."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"No backup: {reason}. Nothing was migrated. {advice}")


class UnknownBackfill(ZeroDowntimeError):
    """No installed app declares this backfill."""


class BackfillRefused(ZeroDowntimeError):
    """The state of a backfill does not allow what was asked for."""


class BackfillFailed(ZeroDowntimeError):
    """A backfill cannot go on until its error is corrected."""


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return ``Did you mean …?`` with the nearest known name, or ``otherwise`` if none is near."""
    near = get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else otherwise


def summary(error: BaseException) -> str:
    """Return an exception in one line, with its type if it is not ours.

    The line quotes no row: it has the message of a PostgreSQL error without the detail
    (https://www.postgresql.org/docs/current/error-style-guide.html).
    """
    said_by = error.__cause__ if isinstance(error, Error) else error  # Django wraps psycopg's
    primary = said_by.diag.message_primary if isinstance(said_by, psycopg.Error) else None
    return _in_one_line(error, primary or DETAIL.sub("", str(error)))


def for_the_ledger(error: BaseException) -> str:
    """Return an exception in one line for the ledger, which keeps no row's data.

    The message of a Python error may quote a row (``ValueError("bad row: …")``), so the line has its type alone.
    """
    if isinstance(error, ZeroDowntimeError):
        return error.kept or summary(error)
    return summary(error) if isinstance(error, Error | psycopg.Error | KeyboardInterrupt) else type(error).__name__


def in_full(error: BaseException) -> str:
    """Return an exception in one line with PostgreSQL's detail, for the screen of the migration's author."""
    return _in_one_line(error, str(error))


def _in_one_line(error: BaseException, text: str) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by Ctrl-C or SIGTERM."
    text = " ".join(text.split())
    return text if isinstance(error, CommandError) else f"{type(error).__name__}: {text}".rstrip(": ")


def counted(count: int, noun: str) -> str:
    """Return ``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
