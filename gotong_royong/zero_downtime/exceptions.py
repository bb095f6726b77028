"""What can go wrong in a run, each said so that the reader knows what to do next.

They are Django's ``CommandError``, so that a command ends with the sentence and a non-zero exit, without a traceback.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

import psycopg
from django.core.management import CommandError
from django.db import Error

# What PostgreSQL says beside the message of an error that one of ours quotes, to the end of the line.
DETAIL = re.compile(r"\s*\b(?:DETAIL|CONTEXT|HINT|QUERY): .*")

# What to do about PostgreSQL's errors, by their codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
ADVICE = {
    "42501": "Use the role that owns the tables, or GRANT this one what it lacks.",
    "25006": "The server is a standby, or the database is set to be only read. Use one that takes writes.",
    "55P03": "Another session has locked what this reads. End it, or do that again later: "
    "SELECT pid, query FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE mode = 'AccessExclusiveLock' finds it.",
}


WAYS_OUT = (
    "Rename or drop the one that is there, or change the migration, and migrate again. If the migration was "
    "applied before and only its record is lost, record it: migrate APP NAME --fake, or --fake-initial."
)


class ZeroDowntimeError(CommandError):
    """Anything that the engine refuses or gives up."""

    kept = ""
    """What the ledger may say of it, if that is less than its text: nothing that a row says."""

    def saying(self, text: str, kind: "type[ZeroDowntimeError] | None" = None) -> "ZeroDowntimeError":
        """Return the same error with another text, or an error of another kind of which the ledger says the same."""
        other = ZeroDowntimeError.__new__(kind or type(self), text)
        vars(other).update(vars(self))
        return other


class LockNotObtained(ZeroDowntimeError):
    """A lock could not be had within the patience, though it was tried again and again."""


class BlockedTooLong(ZeroDowntimeError):
    """Somebody waited for us longer than the block budget, so our statement was canceled."""


class GaveWay(ZeroDowntimeError):
    """Python of a migration was interrupted by us, and is to run again: nothing of it is committed."""


class Interrupted(ZeroDowntimeError):
    """Python of a migration, or a CALL or DO, came to no end, and some of it may be committed."""


class HalfCommitted(ZeroDowntimeError):
    """Python of a migration has ended the transaction that it stood in."""

    def __init__(self, error: str) -> None:
        then = f" After that: {error.rstrip('.')}." if error else ""
        super().__init__(
            "Its code ended the transaction that it stood in, so what was done by then may stay, and is not undone."
            f"{then} Put right what is half done, take the COMMIT out or write atomic = False, and migrate again."
        )


class Unwatched(ZeroDowntimeError):
    """Nobody watches any more whom we block, so our statement was canceled."""

    @classmethod
    def lost(cls, lost: str, refused: str) -> "Unwatched":
        return cls(
            f"The session that watches whom it blocks was lost ({lost}), and another could not be opened: {refused}. "
            "Nothing runs unwatched. Once the server takes new connections, migrate again."
        )

    @classmethod
    def failed(cls, error: str) -> "Unwatched":
        return cls(f"The watchdog, which looks whom it blocks, failed: {error}. Nothing runs unwatched.")


class StepFailed(ZeroDowntimeError):
    """A migration raised something that is none of ours."""


class ReceiverFailed(ZeroDowntimeError):
    """A receiver of pre_migrate or post_migrate raised something."""


class RolledBack(ZeroDowntimeError):
    """A step failed, and what its run had applied before was undone."""


class NoLedger(ZeroDowntimeError):
    """The ledger's tables are not there and cannot be made."""


class LedgerNotReadable(ZeroDowntimeError):
    """The ledger's tables are there, and this role may not read them: what it does not see, it must not call unknown.

    Args:
        tables: those that it may not read, with their schema, and the role, quoted.
    """

    def __init__(self, tables: Iterable[str], role: str) -> None:
        names = ", ".join(tables)
        super().__init__(
            f"The ledger is there, and this role may not read it: it lacks SELECT on {names}. "
            f"Use the role that owns them, or GRANT SELECT ON {names} TO {role}."
        )


class DefinitionDiffers(ZeroDowntimeError):
    """What a migration wants to make is there already, and is something else."""

    def __init__(self, kind: str, name: str, found: str, wanted: str) -> None:
        self.kind, self.name, self.found, self.wanted = kind, name, found, wanted
        super().__init__(
            f"There is a {kind} {name} already, and it is another one.\n  found:  {found}\n  wanted: {wanted}\n"
            f"{WAYS_OUT}"
        )


class OwnTransaction(ZeroDowntimeError):
    """SQL that ends the transaction of a migration that is to be one."""

    def __init__(self, sql: str) -> None:
        super().__init__(
            f"The migration is one transaction, and its SQL would end that: {' '.join(sql.split())[:200]}. "
            "That was not executed. Write atomic = False in the migration, or take out the COMMIT."
        )


class LeftOpen(ZeroDowntimeError):
    """An operation of a migration that is no transaction has left one open."""

    def __init__(self) -> None:
        super().__init__(
            "It left a transaction open, and what it did in that was rolled back. End it in the same operation, with "
            "COMMIT, or leave out what begins it (BEGIN, set_autocommit(False)), and migrate again."
        )


class StillNeeded(ZeroDowntimeError):
    """Something would be dropped on which something else depends, which nobody has said to drop."""

    def __init__(self, dropped: str, dependents: Iterable[str]) -> None:
        super().__init__(
            f"Dropping {dropped} would take along what depends on it: {', '.join(dependents)}. That was not dropped. "
            "Drop it first, in this migration or one before it, with a reverse that makes it again."
        )


class HistoryLost(ZeroDowntimeError):
    """Nothing says that an app's migrations are applied, but what they make is there."""

    def __init__(self, made_by: object, table: str, data: object, app: str) -> None:
        super().__init__(
            f"Of the app {app} nothing is recorded as applied, but the table {table}, which {made_by} makes, is there, "
            f"and the ledger does not know whose it is. The SQL or Python of {data} would run a second time. "
            "Nothing was changed. Restore django_migrations from the backup that the tables are from. Or say what is "
            f"applied: migrate {app} NAME --fake, or --fake-initial if it is only the tables. If it is another table "
            "of the same name, rename or drop it."
        )


class EditedHalfway(ZeroDowntimeError):
    """A migration that is half done, and whose file says by now something else than what was done."""


class HalfDone(ZeroDowntimeError):
    """A migration of which a run left a half is to be recorded as done."""


class TransactionPooling(ZeroDowntimeError):
    """The connection goes through a proxy that hands every transaction to another session."""

    def __init__(self) -> None:
        super().__init__(
            "This database connection goes through a proxy that pools transactions (such as PgBouncer with "
            "pool_mode = transaction), where session settings and the lock that keeps deploys apart mean nothing. "
            "Set DATABASE_URL to the server itself, or to a pool of sessions, and run this again."
        )


class Nested(ZeroDowntimeError):
    """A command that would wait for its own process."""

    def __init__(self, run: str) -> None:
        super().__init__(
            "A command that changes the schema was called by a migration or a thread of the process that is at work "
            f"on this database already ({run}). It would wait for itself. Let the migration depend on the others "
            "instead (dependencies = …), or call the command once that one has ended."
        )


class LockLost(ZeroDowntimeError):
    """The session with the runner's lock was ended, and so was the one that migrates."""

    def __init__(self) -> None:
        super().__init__(
            "The session that keeps other runs away was ended, and by now another run is at work on this database. "
            "This one has stopped. Once that one has ended, migrate again."
        )


class WithinTransaction(ZeroDowntimeError):
    """A command that is called in a transaction."""

    def __init__(self) -> None:
        super().__init__(
            "This command is called within a transaction (transaction.atomic). Should that be rolled back, what the "
            "ledger says would not be so. Nothing was changed. Call it outside of a transaction."
        )


class NotUndoable(ZeroDowntimeError):
    """A rollback that cannot be done, or not without a loss that nobody has agreed to."""


class ImpossibleStage(ZeroDowntimeError):
    """A migration that must come before a deploy needs one that must come after it."""


class BackupFailed(ZeroDowntimeError):
    """The backup before a run could not be made, so there was no run."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"No backup: {reason}. Nothing was migrated. {advice}")


class UnknownBackfill(ZeroDowntimeError):
    """A backfill that this release of the code does not declare."""


class BackfillRefused(ZeroDowntimeError):
    """A backfill that cannot be started, controlled or needed as somebody asked for."""


class BackfillFailed(ZeroDowntimeError):
    """A backfill that cannot go on until somebody mends it."""


def meant(name: str, known: Iterable[str], otherwise: str) -> str:
    """Ask whether the known name that is nearest was meant, and say ``otherwise`` if none is near."""
    near = get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else otherwise


def summary(error: BaseException) -> str:
    """Say an exception in one line, with its type where that is not one of ours.

    It may be kept, and be shown to who may not see the rows: of PostgreSQL's error it is the message alone, without the
    detail, which quotes them (https://www.postgresql.org/docs/current/error-style-guide.html).
    """
    said_by = error.__cause__ if isinstance(error, Error) else error  # Django wraps psycopg's
    primary = said_by.diag.message_primary if isinstance(said_by, psycopg.Error) else None
    return _in_one_line(error, primary or DETAIL.sub("", str(error)))


def for_the_ledger(error: BaseException) -> str:
    """Say an exception in one line that may be kept: of one that is neither ours nor PostgreSQL's the type alone.

    What Python says may quote a row (``ValueError("bad row: …")``). It stays on the screen of who sees the run.
    """
    if isinstance(error, ZeroDowntimeError):
        return error.kept or summary(error)
    return summary(error) if isinstance(error, Error | psycopg.Error | KeyboardInterrupt) else type(error).__name__


def in_full(error: BaseException) -> str:
    """Say an exception as ``summary`` does, with all that PostgreSQL says of it: for who is to mend a migration."""
    return _in_one_line(error, str(error))


def _in_one_line(error: BaseException, text: str) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by Ctrl-C or SIGTERM."
    text = " ".join(text.split())
    return text if isinstance(error, CommandError) else f"{type(error).__name__}: {text}".rstrip(": ")


def counted(count: int, noun: str) -> str:
    """Say how many there are: ``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
