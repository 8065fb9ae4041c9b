"""``python -m lit_extract``: the command line."""

import os
import sys

from lit_extract.cli import main

if "LIT_EXTRACT_FORK_SERVER" in os.environ:
    from lit_extract.sweep.fork_server import end, serve

    serve()  # comes back in the processes that it starts, with their command
    end(main())
sys.exit(main())
