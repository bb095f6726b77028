"""How does the command line fill an empty database with the demo? `contributions.demo` does the work."""

import shutil
import time
from argparse import ArgumentTypeError
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection
from django.db.models import Q
from psycopg.errors import LockNotAvailable

from accounts.models import User
from contributions.demo import FEWEST, Demo
from contributions.demo.loading import Occupied, check_empty, is_migrated, load, loaded

ADMIN, EMAIL, PASSWORD = "admin", "admin@example.org", "gotong-royong"
LARGEST_SEED = 2**63
WIPE = "\r\x1b[K"  # the line on a terminal
EMPTY_ONE = (
    "load_demo fills empty tables only and never deletes: name another database in DATABASE_URL "
    "(or another folder for the embedded one in EMBEDDED_POSTGRES_DIR), and run manage.py migrate there first."
)


def _users(text: str) -> int:
    if (number := _whole(text)) < FEWEST:
        raise ArgumentTypeError(f"{text} is too few: people vouch for each other, so at least {FEWEST} are needed.")
    return number


def _seed(text: str) -> int:
    if abs(number := _whole(text)) >= LARGEST_SEED:
        raise ArgumentTypeError("it has too many digits: 18 at most.")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a whole number.") from None


class Command(BaseCommand):
    help = "Fill the empty tables with people, their work and its proofs; the same numbers give the same rows."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--users", type=_users, required=True, metavar="N", help="how many people; 80 rows for each"
        )
        parser.add_argument("--seed", type=_seed, default=1, metavar="S", help="another number gives other rows (1)")
        parser.add_argument(
            "--admin", action="store_true", help=f"also make a superuser {ADMIN!r} for looking around; needs DEBUG"
        )

    def handle(self, *args: Any, users: int, seed: int, admin: bool, verbosity: int, **options: Any) -> None:
        self.quiet = verbosity == 0
        if admin and not settings.DEBUG:
            raise CommandError(
                "--admin makes an account whose password stands in the source code, so it needs DEBUG=1. "
                "Make an account of your own: manage.py createsuperuser"
            )
        if not is_migrated():
            raise CommandError("The database lacks the newest migrations. Run: manage.py migrate")
        demo = Demo(users, seed)
        try:
            self._load(demo)
        except KeyboardInterrupt:
            connection.close()  # it may have been stopped in the middle of a statement
            outcome = "all of the demo is loaded" if loaded() == demo.password else "nothing was loaded"
            raise CommandError(f"Stopped by Ctrl-C: {outcome}.", returncode=130) from None
        if admin:
            self._make_admin()

    def _load(self, demo: Demo) -> None:
        here = loaded()
        if here == demo.password:
            self._say(f"The demo is already there: {demo.users:,} people, seed {demo.seed}.")
            return
        if here:
            raise CommandError(f"The database holds another demo, made by `{here.removeprefix('!')}`. {EMPTY_ONE}")
        self.started = self.last_line = time.monotonic()
        try:
            check_empty()
            count = load(demo, self._progress)
        except Occupied as error:
            raise CommandError(f"The table {error} already holds rows. {EMPTY_ONE}") from None
        except (DatabaseError, ChildProcessError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            if isinstance(error.__cause__, LockNotAvailable):
                reason = "other sessions are using its tables, perhaps another load_demo. Try again when they are done"
            raise CommandError(f"Nothing was loaded into the database: {reason}.") from error
        finally:
            self._wipe()
        seconds = time.monotonic() - self.started
        for table, rows in count.items():
            self._say(f"{rows:>12,}  {table}")
        self._say(f"{count.total():>12,}  rows in {seconds:.1f} s")

    def _make_admin(self) -> None:
        account = User.objects.filter(Q(username=ADMIN) | Q(email=EMAIL)).first()
        if not account:
            account = User.objects.create_superuser(ADMIN, EMAIL, PASSWORD)
        if account.is_superuser and account.is_active and account.check_password(PASSWORD):
            self._say(f"Log in as {account.username} with the password {PASSWORD}")
        else:
            self._say(
                f"The account {account.username} ({account.email}) was there before and stays as it is. "
                f"If you do not know its password: manage.py changepassword {account.username}"
            )

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.stdout.write(text)

    def _progress(self, text: str) -> None:
        """Show ``text``: on a terminal always, over the last one; elsewhere less and less often."""
        now = time.monotonic()
        if self.quiet:
            return
        if self.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            self.stdout.write(f"{WIPE}{text} …"[: width + len(WIPE)], ending="")
            self.stdout.flush()
        elif now - self.last_line > max(5, (now - self.started) / 4):
            self.last_line = now
            self.stdout.write(f"{now - self.started:4.0f} s: {text}")

    def _wipe(self) -> None:
        if not self.quiet and self.stdout.isatty():
            self.stdout.write(WIPE, ending="")
            self.stdout.flush()
