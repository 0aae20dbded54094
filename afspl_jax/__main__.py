"""`python -m afspl_jax` is the `afspl` command."""

import sys

from afspl_jax.cli import main

sys.exit(main())
