"""Examine this machine: packages, GPU, disk, hub, datasets; and how to get what is missing."""

import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Literal

from lit_extract import __version__
from lit_extract.common.console import as_size
from lit_extract.common.errors import InputError, counted, name_some, one_line
from lit_extract.common.host import host_memory, usable_cores
from lit_extract.modules.registry import default_models_file, read_models
from lit_extract.storage.disk import free_bytes
from lit_extract.storage.places import place_of, to_path

PACKAGE = "lit-extract"
SECONDS_FOR_HUB = 5
LEAST_FREE = 10**9  # bytes; fewer are reported

# Purposes of the optional dependencies in pyproject.toml.
PURPOSES = {
    "check": "language check of lit-extract check",
    "docs": "make docs",
    "plot": "show --picture, features.plot()",
    "remote": "output to s3://",
    "report": "lit-extract report",
    "review": "lit-extract review",
    "server": "captions from a server",
    "vllm": "captions with vLLM in this process; needs a GPU",
}
# Environment variables that change what a run does; none of them holds a secret.
_VARIABLES = ("CUDA_VISIBLE_DEVICES HF_HOME HF_HUB_CACHE HF_HUB_OFFLINE OMP_NUM_THREADS SLURM_JOB_ID TMPDIR").split()


@dataclass(frozen=True)
class Finding:
    """One thing that exists, is missing (and not always needed), or is wrong."""

    state: Literal["ok", "missing", "wrong"]
    what: str
    found: str
    advice: str = ""  # a command that installs or fixes it


def examine(output_dir: str) -> Iterator[Finding]:
    """Yield all findings, the quick ones first."""
    yield Finding("ok", PACKAGE, f"{__version__} in {Path(__file__).parents[1]}")
    yield Finding("ok", "Python", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")
    yield from examine_packages()
    yield Finding("ok", "environment", _variables() or "none of its variables is set")
    cores = counted(usable_cores(), "core")
    yield Finding("ok", "host", f"{cores} and {as_size(host_memory())} of memory may be used")
    yield examine_disk(output_dir)
    yield examine_models_file()
    yield from examine_hub()
    yield from examine_torch()
    yield from examine_datasets()


def examine_packages() -> Iterator[Finding]:
    """Compare the installed packages with the requirements of this package and of its extras."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
        extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        yield Finding("wrong", "packages", f"{PACKAGE} is not installed", "pip install .   # in the clone")
        return
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    bad = [one for one in needed if _version(one.name) is None or not one.specifier.contains(str(_version(one.name)))]
    versions = ", ".join(f"{one.name} {_version(one.name) or 'missing'}" for one in needed)
    if bad:
        asked = " ".join(f"'{one.name}{one.specifier}'" for one in bad)
        yield Finding("wrong", "packages", f"{versions}; wanted: {asked}", f"pip install {asked}")
    else:
        yield Finding("ok", "packages", versions)
    for extra in sorted({*extras} & {*PURPOSES}):
        of_extra = [one for one in wanted if one.marker and one.marker.evaluate({"extra": extra}) and one not in needed]
        lacking = [one.name for one in of_extra if one.name != PACKAGE and _version(one.name) is None]
        if lacking:
            text = f"{PURPOSES[extra]}: {', '.join(lacking)} not installed"
            yield Finding("missing", extra, text, f"pip install '{PACKAGE}[{extra}]'")
        else:
            yield Finding("ok", extra, PURPOSES[extra])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _variables() -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ)


def examine_disk(output_dir: str) -> Finding:
    """Check that features can be written, and how much disk space is free."""
    folder = place_of(to_path(output_dir, "output_dir")).local
    if folder is None:
        return Finding("ok", "disk", f"{output_dir} is not on a disk of this machine")
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110 (Path's raises)
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = free_bytes(existing)
    except OSError as error:
        found = f"nothing can be written to {existing}: {error.strerror or one_line(error)}"
        return Finding("wrong", "disk", found, "--output_dir DIR")
    state: Literal["ok", "missing"] = "ok" if free >= LEAST_FREE else "missing"
    advice = "" if state == "ok" else "--output_dir DIR   # on another disk"
    return Finding(state, "disk", f"{as_size(free)} free for {folder}", advice)


def examine_models_file() -> Finding:
    """Read models.yml."""
    file = default_models_file()
    try:
        counts = {kind: len(entries) for kind, entries in read_models().items()}
    except InputError as error:
        return Finding("wrong", "models.yml", str(error), "edit it, or delete it to use the shipped one")
    return Finding("ok", "models.yml", f"{file}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")


def examine_hub() -> Iterator[Finding]:
    """Check whether the model hub answers, and accepts the user's token."""
    from huggingface_hub import constants, get_token, whoami

    scheme, _, address = constants.ENDPOINT.partition("://")
    host = f"{scheme}://{address.rpartition('@')[2]}"  # without a password, which an error may repeat
    cache = f"models are kept in {constants.HF_HUB_CACHE}"
    without = "--model.checkpoint FILE, or copy that folder from a machine with a network"
    if constants.HF_HUB_OFFLINE:
        yield Finding("missing", "hub", f"HF_HUB_OFFLINE is set; {cache}", f"unset HF_HUB_OFFLINE, or {without}")
        return
    try:
        with urllib.request.urlopen(host, timeout=SECONDS_FOR_HUB):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError, HTTPException) as error:
        yield Finding("missing", "hub", f"{host} does not answer ({one_line(error)}); {cache}", without)
        return
    yield Finding("ok", "hub", f"{host} answers; {cache}")
    if get_token() is None:
        yield Finding("missing", "login", "not logged in, which only gated models need", "hf auth login")
        return
    try:
        whoami()
    except Exception as error:  # many kinds, from the hub and the network
        yield Finding("wrong", "login", f"the hub refuses the token: {one_line(error)}", "hf auth login")
    else:
        yield Finding("ok", "login", "logged in")


def examine_torch() -> Iterator[Finding]:
    """Import what a run imports; find the device that it would use, and the precision."""
    try:
        import timm  # noqa: F401
        import torch
        import transformers  # noqa: F401

        from lit_extract.jobs.trainer import default_precision
    except Exception as error:  # many kinds, from builds that do not fit together
        reason = f"{type(error).__name__}: {one_line(error)}"
        yield Finding("wrong", "imports", reason, "pip install --force-reinstall torch torchvision   # of one build")
        return
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        named = name_some([f"{card.name} ({as_size(card.total_memory)})" for card in cards])
        yield Finding("ok", "GPU", f"{named}; CUDA {torch.version.cuda}")
    elif shutil.which("nvidia-smi"):
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        advice = "nvidia-smi   # check the driver; else install PyTorch for your CUDA version, see pytorch.org"
        yield Finding("wrong", "GPU", f"this machine has nvidia-smi, but PyTorch {build} and finds no GPU", advice)
    else:
        yield Finding(
            "missing", "GPU", "none; runs are on the CPU", "--config trainer/cpu   # where a config wants one"
        )
    yield Finding("ok", "precision", f"{default_precision('auto')}, unless --trainer.precision is given")


def examine_datasets() -> Iterator[Finding]:
    """Look for the datasets in the folders that their environment variables name."""
    from lit_extract.datasets import DATASETS, load_dataset

    for dataset in DATASETS.values():
        variable = dataset.root_variable
        if variable is None and dataset.ships_at is None:
            continue  # any folder
        if not dataset.has_root(None):
            advice = f"export {variable}=DIR   # or --data.root DIR"
            yield Finding("missing", dataset.name, f"{variable} is not set", advice)
            continue
        try:
            stimuli = load_dataset(dataset.name)
        except InputError as error:
            yield Finding("wrong", dataset.name, str(error), f"lit-extract index {dataset.name} --root DIR")
            continue
        lost = [path for path in {*stimuli["image"].head(100)} if not Path(path).is_file()]
        found = f"{counted(len(stimuli), 'stimulus', 'stimuli')} in {dataset.find_root(None)}"
        if lost:
            advice = "download the images, or leave them out with --data.query"
            yield Finding("wrong", dataset.name, f"{found}, but no {name_some(sorted(lost), 1)}", advice)
        else:
            yield Finding("ok", dataset.name, found)
