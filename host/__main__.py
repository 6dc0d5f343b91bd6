"""`python -m host` = `qhost`."""

import sys

from host.cli import main

sys.exit(main())
