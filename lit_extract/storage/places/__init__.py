"""The places of outputs: a disk of this machine, or a server such as S3, behind one interface."""

from pathlib import Path
from typing import Any

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import check_not_empty, expanded_path
from lit_extract.storage.places.base import LARGE as LARGE
from lit_extract.storage.places.base import LOCK_SUFFIX as LOCK_SUFFIX
from lit_extract.storage.places.base import PART_SUFFIX as PART_SUFFIX
from lit_extract.storage.places.base import AnyPath as AnyPath
from lit_extract.storage.places.base import File as File
from lit_extract.storage.places.base import Place, remote_errors
from lit_extract.storage.places.base import RemoteError as RemoteError
from lit_extract.storage.places.local import DAMAGE as DAMAGE
from lit_extract.storage.places.local import LocalPlace
from lit_extract.storage.places.local import is_folder as is_folder
from lit_extract.storage.places.local import is_there as is_there
from lit_extract.storage.places.remote import RemotePlace


def place_of(path: AnyPath) -> Place:
    """Return the file or folder at a path; the disk or network is not accessed yet."""
    return LocalPlace(path) if isinstance(path, Path) else RemotePlace(path)


def to_path(text: str | AnyPath, setting: str = "path") -> AnyPath:
    """Return a local path, or a remote one when ``text`` has a protocol; the network is not accessed yet."""
    if not isinstance(text, str):
        return text
    protocol, found, rest = check_not_empty(text, setting).partition("://")
    if not found or protocol == "file":
        return Path(rest) if found else expanded_path(text, setting)
    if not rest.strip("/"):
        raise InputError(f"{setting}: {text!r} is incomplete; it must be {protocol}://<bucket>/<prefix>")
    try:
        from upath import UPath

        # A cached listing would not show what another rank, or another machine, has written since.
        path: UPath = UPath(text, use_listings_cache=False, **_OPTIONS.get(protocol, {}))
        with remote_errors(path):
            filesystem = path.fs  # imports the package for the protocol
            if protocol == "s3":
                filesystem.connect()  # reads the settings only
    except ImportError as error:
        missing = "universal_pathlib" if error.name == "upath" else one_line(error)
        raise InputError(
            f"{setting}: {text!r} needs a package that is not installed ({missing}): pip install 'lit-extract[remote]' "
            "for s3://; another protocol also needs fsspec's package for it"
        ) from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{setting}: {text!r}: {one_line(error)}") from None
    return path


_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "fixed_upload_size": True,  # R2 needs parts of equal size; others accept them
        "config_kwargs": {"read_timeout": 60},  # seconds, as in botocore; s3fs has 15, too few for a busy server
    }
}


def local_path(text: str, setting: str) -> Path:
    """Return a path that must be local."""
    if "://" in text and not text.startswith("file://"):
        raise InputError(f"{setting}: {text!r} is remote; it must be a local path")
    return expanded_path(text.removeprefix("file://"), setting)
