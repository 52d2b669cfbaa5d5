"""`python -m effectonce` is `effectonce`."""

import sys

from effectonce.cli import main

sys.exit(main())
