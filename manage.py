#!/usr/bin/env python
"""Django's command line, with the errors an operator can act on said in one sentence."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line
from django.db import NotSupportedError, OperationalError


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gotong_royong.settings")
    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, NotSupportedError, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"Error: {str(error).strip()}")


if __name__ == "__main__":
    main()
