"""`python -m coprobe` is the command line."""

import sys

from coprobe.cli import main

sys.exit(main())
