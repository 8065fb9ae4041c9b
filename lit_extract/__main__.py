"""``python -m lit_extract``: the command line."""

import os
import sys

from lit_extract.cli import main
from lit_extract.sweep import fork_server

if fork_server.VARIABLE in os.environ:
    fork_server.serve()  # comes back in the processes that it starts, with their command
    fork_server.end(main())
sys.exit(main())
