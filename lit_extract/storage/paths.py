"""Paths, local or remote: plain ``pathlib`` here, universal_pathlib over fsspec for ``s3://`` and its like.

An object store has no folders, no renaming and no locks. What it has: an object is there complete or not at all.
"""

import errno
import io
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import open_regular, read_regular

if TYPE_CHECKING:
    from upath import UPath

    AnyPath: TypeAlias = Path | UPath
else:
    AnyPath = Path  # universal_pathlib is an extra


class RemoteError(InputError, OSError):
    """A remote path can't be used: no network, no such bucket, no permission and so on."""


def to_path(text: str | AnyPath, setting: str = "path") -> AnyPath:
    """A local path, or a remote one when ``text`` has a protocol; nothing is asked of the network yet.

    Args:
        text: ``features/``, ``s3://bucket/prefix``, …
        setting: Where it comes from, for the error.

    Raises:
        InputError: No such protocol, or a package for it is missing.
    """
    if not isinstance(text, str):
        return text
    protocol, found, rest = text.partition("://")
    if not found:
        return Path(text)
    if protocol == "file":
        return Path(rest)
    if not rest.strip("/"):
        raise InputError(f"{setting}: {text!r} names no place; it is {protocol}://<bucket>/<prefix>")
    try:
        from upath import UPath

        # A listing that is remembered would not show what another rank, or another machine, has written since.
        path: UPath = UPath(text, use_listings_cache=False, **_OPTIONS.get(protocol, {}))
        with remote_errors(path):
            filesystem = path.fs  # imports the package for the protocol
            if protocol == "s3":
                filesystem.connect()  # reads the settings, and asks nothing
    except ImportError as error:
        missing = "universal_pathlib" if error.name == "upath" else one_line(error)
        raise InputError(
            f"{setting}: {text!r} needs a package that is not installed ({missing}): pip install 'lit-extract[remote]' "
            "for s3://, and fsspec's package besides for another protocol"
        ) from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{setting}: {text!r}: {one_line(error)}") from None
    return path


_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "fixed_upload_size": True,  # R2 wants parts of one size, others don't mind
        "config_kwargs": {"read_timeout": 60},  # botocore's; s3fs has 15 s, which is little for a busy server
    }
}


def local_path(text: str, setting: str) -> Path:
    """A path that must be local.

    Raises:
        InputError: It is remote.
    """
    if "://" in text and not text.startswith("file://"):
        raise InputError(f"{setting}: {text!r} is remote; it must be a local path")
    return Path(text.removeprefix("file://"))


@contextmanager
def remote_errors(path: AnyPath) -> Iterator[None]:
    """Turn whatever goes wrong in reaching a remote path into a RemoteError; errors of a local path pass as they are.

    Raises:
        RemoteError: The path is remote, and can't be used.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        of_transport = package in _CLIENTS or (isinstance(error, OSError) and package != "zarr")
        if isinstance(path, Path) or not of_transport:
            raise
        raise RemoteError(f"can't use {str(path)!r}: {one_line(error)}") from error


# Their errors are no OSErrors.
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs"}


def exists(file: AnyPath) -> bool:
    """Whether a file is there."""
    if isinstance(file, Path):
        return file.exists()
    with remote_errors(file):
        return bool(file.fs.exists(file.path))


def remove_file(file: AnyPath) -> None:
    """Delete a file, if it is there."""
    if isinstance(file, Path):
        file.unlink(missing_ok=True)
        return
    with remote_errors(file), suppress(FileNotFoundError, KeyError):
        file.fs.rm_file(file.path)  # not rm, which says nothing when it may not


def rename_file(file: AnyPath, name: str) -> None:
    """Rename a file within its folder, in the place of what is there."""
    if isinstance(file, Path):
        file.replace(file.with_name(name))
        return
    with remote_errors(file):
        file.fs.mv(file.path, file.with_name(name).path)


def open_to_read(file: AnyPath, whole: bool) -> BinaryIO:
    """A file opened for reading bytes.

    Args:
        file: Local, then a regular file, or remote.
        whole: All of a remote file is wanted, and fits the memory; else what is read is fetched, and no more.
    """
    if isinstance(file, Path):
        return open_regular(file)
    return io.BytesIO(file.fs.cat_file(file.path)) if whole else file.fs.open(file.path, "rb", cache_type="none")


def read_files(folder: AnyPath, keys: Sequence[str], limit: int) -> dict[str, bytes]:
    """Content of small files by their relative paths; those that are not there are left out.

    Args:
        folder: Local or remote.
        keys: Which files.
        limit: Bytes that a local one may have at most.

    Raises:
        OSError: One can't be read, is larger, or is something other than a regular file.
    """
    if isinstance(folder, Path):
        found = {}
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[key] = read_regular(folder / key, limit)
        return found
    places = {(folder / key).path: key for key in keys}
    with remote_errors(folder):
        contents = folder.fs.cat(list(places), on_error="return") if places else {}
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
    return {places[path]: content for path, content in contents.items() if isinstance(content, bytes)}


def write_file(folder: AnyPath, key: str, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file below a folder: it appears when it is complete, in the place of what is there.

    Args:
        folder: Local or remote.
        key: Its relative path.
        pieces: Its content, each written before the next is asked for.

    Raises:
        OSError: It can't be written, or a link leads out of the folder.
    """
    file = folder / key
    if not isinstance(file, Path) or not isinstance(folder, Path):
        content = bytearray()
        for piece in pieces:
            content += piece
        with remote_errors(file):
            file.fs.pipe_file(file.path, bytes(content))  # type: ignore[union-attr]
        return
    refuse_way_out(folder, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
    try:
        with beside.open("xb") as out:
            out.writelines(pieces)
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def refuse_way_out(folder: Path, file: Path) -> None:
    """See that a file that is about to be written or renamed lies in its folder, also by the links that lead to it.

    Raises:
        OSError: It does not.
    """
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise OSError(errno.ELOOP, f"a link leads out of {str(folder)!r}", str(file))


def file_sizes(folder: AnyPath, keys: Iterable[str]) -> Mapping[str, int]:
    """Bytes of each of these regular files that is there, by its relative path; a remote folder may tell of others."""
    if not isinstance(folder, Path):
        return sizes_below(folder)
    sizes = {}
    for key in keys:
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(folder / key)  # noqa: PTH116 (half the time of Path.stat, for each shard)
            if stat.S_ISREG(found.st_mode):
                sizes[key] = found.st_size
    return sizes


def remove_below(folder: "UPath") -> None:
    """Delete all objects below a remote folder.

    Raises:
        RemoteError: Some of them are still there.
    """
    left = sizes_below(folder)
    if not left:
        return
    with remote_errors(folder):
        folder.fs.rm(folder.path, recursive=True)
        if left := sizes_below(folder):
            raise OSError(f"{len(left)} objects could not be deleted")


def sizes_below(folder: "UPath") -> dict[str, int]:
    """Bytes of each object below a remote folder, by its relative path: a listing, not a request for each."""
    prefix = folder.path.rstrip("/") + "/"
    with remote_errors(folder):
        try:
            found = folder.fs.find(prefix, detail=True)
        except FileNotFoundError:
            return {}
    return {name.removeprefix(prefix): int(info["size"]) for name, info in found.items()}


@contextmanager
def new_object(file: "UPath") -> Iterator[BinaryIO]:
    """Write a remote object front to back: it appears when the block ends well, else nothing of it stays.

    fsspec's own ``with`` would publish the half of it that is there when the block fails.
    """
    with remote_errors(file):
        writer = file.fs.open(file.path, "wb", autocommit=False)
        try:
            yield writer
            writer.close()
            writer.commit()
        except BaseException:
            writer.closed = True  # or its destructor would write what is left
            with suppress(Exception):
                writer.discard()
            raise


def abort_uploads(path: AnyPath) -> None:
    """Drop what killed runs had begun to upload to an object, or below a folder; S3 keeps it unseen, and charges."""
    if isinstance(path, Path) or not hasattr(path.fs, "abort_mpu"):
        return
    bucket, key, _ = path.fs.split_path(path.path)
    with suppress(OSError):  # not everyone may list uploads, and not every server can
        found = path.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        for upload in found.get("Uploads", []):
            path.fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
