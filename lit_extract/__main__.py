"""``python -m lit_extract``: the command line."""

import sys

from lit_extract.cli import main

sys.exit(main())
