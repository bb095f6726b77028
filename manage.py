#!/usr/bin/env python
"""Django's command line. An error that an operator can act on is one sentence."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gotong_royong.settings")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"Error: {' '.join(str(error).split())}")
    except Exception as error:
        from gotong_royong.zero_downtime.running import diagnosis  # needs Django to be set up

        if "--traceback" in sys.argv or not (sentence := diagnosis.sentence(error)):
            raise
        sys.exit(f"Error: {sentence}")
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
