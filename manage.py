#!/usr/bin/env python
"""Django's command line, with the errors that an operator can act on said in one sentence."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line
from django.db import NotSupportedError, OperationalError, connection


def _sentence(error: Exception) -> str:
    reason = " ".join(str(error).split())
    if isinstance(error, NotSupportedError):
        return f"{reason.rstrip('.')}. Upgrade the server, or set DATABASE_URL to another one."
    if not isinstance(error, OperationalError) or getattr(error.__cause__, "sqlstate", None):
        return reason
    database = connection.settings_dict
    where = f"{database['HOST'] or 'localhost'}:{database['PORT'] or 5432}"
    return (
        f"cannot connect to database {database['NAME']} on {where} as {database['USER'] or 'the system user'}. "
        f"Check DATABASE_URL and that the server is running. It said: {reason}"
    )


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gotong_royong.settings")
    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, NotSupportedError, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"Error: {_sentence(error)}")
    except Exception as error:
        from gotong_royong.zero_downtime import mistakes  # which, like any app, wants Django to be set up

        if "--traceback" in sys.argv or not (sentence := mistakes.sentence(error)):
            raise
        sys.exit(f"Error: {sentence}")
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
