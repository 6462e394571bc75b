"""`python -m sdst`, as torchrun starts it: the same as the `sdst` command."""

import sys

from .cli import main

sys.exit(main())
