"""`python -m fisher_jax`, the same as `fisher-jax`."""

import sys

from fisher_jax.cli import main

sys.exit(main())
