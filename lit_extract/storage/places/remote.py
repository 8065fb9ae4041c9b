"""Objects on a server, with universal_pathlib over fsspec.

An object store has no folders, no renaming and no locks. An object exists complete or not at all.
"""

# ruff: noqa: D102 (base.py describes each method)

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lit_extract.storage.places.base import (
    LOCK_SUFFIX,
    SMALL,
    AnyPath,
    Endings,
    File,
    Listing,
    RemoteError,
    remote_errors,
)
from lit_extract.storage.places.lease import Lease

if TYPE_CHECKING:
    from upath import UPath


class RemotePlace:
    """An object, or all objects below a prefix."""

    appears_verified = False

    def __init__(self, path: "UPath") -> None:
        self.path, self.key, self.files = path, path.path, path.fs
        self.local: Path | None = None

    def exists(self) -> bool:
        with remote_errors(self.path):
            return bool(self.files.exists(self.key))

    @contextmanager
    def open_to_read(self, at_a_time: int | None = SMALL) -> Iterator[BinaryIO]:
        with remote_errors(self.path):
            if at_a_time is None:
                yield io.BytesIO(self.files.cat_file(self.key))
                return
            options = {"block_size": at_a_time} if at_a_time else {"cache_type": "none"}
            with self.files.open(self.key, "rb", **options) as file:
                yield file

    def write_verified(self, write: Callable[[BinaryIO], None], verify: Callable[[AnyPath], None]) -> None:
        """Upload front to back, without a copy on the local disk, then verify."""
        with self._new_object() as out:
            write(out)
        try:
            verify(self.path)
        except RemoteError:  # the next run verifies it
            raise
        except OSError:
            self.remove_file()
            raise

    @contextmanager
    def _new_object(self) -> Iterator[BinaryIO]:
        """Write an object front to back; if the block fails, nothing of it remains.

        fsspec's own ``with`` would publish the part written so far.
        """
        with remote_errors(self.path):
            writer = self.files.open(self.key, "wb", autocommit=False)
            try:
                yield writer
                writer.close()
                writer.commit()
            except BaseException:
                writer.closed = True  # or its destructor would write what is left
                with suppress(Exception):
                    writer.discard()
                raise

    def remove_file(self) -> None:
        with remote_errors(self.path), suppress(FileNotFoundError, KeyError):
            self.files.rm_file(self.key)  # not rm, which is silent without permission

    def drop_uploads(self) -> None:
        """Delete unfinished uploads, which S3 hides but charges for."""
        if not hasattr(self.files, "abort_mpu"):
            return
        bucket, key, _ = self.files.split_path(self.key)
        with suppress(OSError):  # not everyone may list uploads, and not every server can
            found = self.files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
            for upload in found.get("Uploads", []):
                self.files.abort_mpu(bucket, upload["Key"], upload["UploadId"])

    def children(self) -> list[AnyPath]:
        with remote_errors(self.path):
            try:
                return list(self.path.iterdir())
            except (FileNotFoundError, NotADirectoryError):  # a prefix exists when something is below it
                return []

    def list_files(self, folders_like: Endings, files_like: Endings = ()) -> Listing:
        files = self._list()
        if not files:
            raise NotADirectoryError(f"there is nothing at {str(self.path)!r}")
        return files, {}

    def _list(self) -> dict[str, File]:
        """Return all objects below the prefix, with one listing."""
        prefix = self.key.rstrip("/") + "/"
        with remote_errors(self.path):
            try:
                found = self.files.find(prefix, detail=True)
            except FileNotFoundError:
                return {}
        files = {}
        for name, about in found.items():
            written = about.get("LastModified") or about.get("mtime") or 0.0  # of S3, of others
            modified = written.timestamp() if isinstance(written, datetime) else float(written)
            files[name.removeprefix(prefix)] = File(int(about["size"]), modified)
        return files

    def read_files(self, keys: Sequence[str], limit: int, without_damaged: bool = False) -> dict[str, bytes]:
        """Return the content of small objects, requested together; an unreadable one never counts as damaged here."""
        places = {(self.path / key).path: key for key in keys}
        with remote_errors(self.path):
            contents = self.files.cat(list(places), on_error="return") if places else {}
            for content in contents.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {places[path]: content for path, content in contents.items() if isinstance(content, bytes)}

    def write_file(self, key: str, pieces: Iterable[bytes | memoryview]) -> None:
        content = bytearray()
        for piece in pieces:
            content += piece
        with remote_errors(self.path):
            self.files.pipe_file((self.path / key).path, bytes(content))

    def file_sizes(self, keys: Iterable[str]) -> Mapping[str, int]:
        """Return the sizes from one listing instead of a request for each file."""
        return {key: file.size for key, file in self._list().items()}

    def set_aside(self, key: str) -> None:
        file = (self.path / key).path
        with remote_errors(self.path):
            if self.files.exists(file):
                self.files.mv(file, f"{file}.corrupt")

    def is_whole(self, mark: str) -> bool:
        return RemotePlace(self.path / mark).exists()

    def remains(self) -> bool:
        return bool(self._list())

    def create_folder(self, files: Mapping[str, bytes], mark: str, content: bytes) -> None:
        if self.is_whole(mark):
            raise FileExistsError(f"{str(self.path)!r} exists")
        self.remove_folder(mark)  # remains of a store, whose shards would count as done
        for key, each in {**files, mark: content}.items():
            self.write_file(key, [each])

    def remove_folder(self, mark: str) -> None:
        RemotePlace(self.path / mark).remove_file()
        if self._list():
            with remote_errors(self.path):
                self.files.rm(self.key, recursive=True)
                if left := self._list():  # S3 does not report objects that may not be deleted
                    raise OSError(f"{len(left)} objects could not be deleted")

    def write_lock(self) -> AbstractContextManager[None]:
        return self._lease().taken()

    def lock_holder(self) -> str | None:
        return self._lease().holder()

    def _lease(self) -> Lease:
        return Lease(self.path.with_name(f".{self.path.name}{LOCK_SUFFIX}"), self.path)
