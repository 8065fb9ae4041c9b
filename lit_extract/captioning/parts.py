"""Finished captions on disk, shard by shard: one JSON-lines file a shard, written beside and renamed.

A record is a row: ``index``, ``stimulus_id``, ``caption``, ``status``, and what was noted of its image. The provenance
lies in a JSON next to the future output, which stays there when the parts are gone.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lit_extract.captioning.output import FAILED, beside, write_beside, write_captions
from lit_extract.errors import InputError, one_line
from lit_extract.layout import INPUT_COLUMNS, INPUTS
from lit_extract.provenance import differing

Record = dict[str, Any]


class Parts:
    """The parts of one output file.

    Args:
        output: The CSV or Parquet that they become.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.sidecar = sidecar_of(output)

    def begin(self, provenance: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Write the provenance, before the first part."""
        self._write_sidecar({"provenance": provenance, "notes": notes})
        self.folder.mkdir(exist_ok=True)

    def check_provenance(self, provenance: Mapping[str, Any]) -> bool:
        """Whether something was begun here.

        Raises:
            InputError: With other settings, which are named; or by something else.
        """
        if not self.output.exists() and not any(self.folder.glob("*.jsonl")):
            return False  # at most a run that ended before its first part
        if not self.sidecar.exists():
            if self.output.exists() or self.folder.exists():
                raise InputError(
                    f"{str(self.output)!r} is there already, but nothing says how it was made ({self.sidecar.name} is "
                    "missing); choose another --output, or pass --overwrite to replace it"
                )
            return False
        if difference := differing(self._read_sidecar().get("provenance", {}), provenance):
            raise InputError(
                f"{str(self.output)!r} was begun with other settings: {difference}. Run with the same settings to go "
                "on, pass --overwrite to start anew, or choose another --output"
            )
        return True

    def write(self, shard: int, records: Iterable[Record]) -> int:
        """Put the records of a shard on disk, with those that are there already; return the bytes written."""
        merged = {record["index"]: record for record in self._read(self._file(shard))}
        merged |= {record["index"]: record for record in records}
        lines = [json.dumps(merged[index], ensure_ascii=False) for index in sorted(merged)]
        data = "".join(f"{line}\n" for line in lines).encode()
        write_beside(self._file(shard), lambda file: file.write_bytes(data))
        return len(data)

    def records(self) -> dict[int, Record]:
        """All records that are there, by row."""
        files = sorted(self.folder.glob("*.jsonl"))
        return {record["index"]: record for file in files for record in self._read(file)}

    def is_finished(self) -> bool:
        """Whether the output is there, with nothing left to do again."""
        return self.output.exists() and not self.folder.exists() and self._read_sidecar().get("failed") == 0

    def check_untouched(self) -> None:
        """Refuse to write over what someone has edited.

        Raises:
            InputError: The output is not as it was written.
        """
        if self.output.exists() and _sha256(self.output) not in self._read_sidecar().get("output_sha256", []):
            raise InputError(
                f"{str(self.output)!r} was changed since it was written; move it elsewhere to go on, or pass "
                "--overwrite"
            )

    def publish(self, captions: pd.DataFrame, inputs: NDArray[np.int64], **counts: int) -> None:
        """Write the output, in the place of an earlier one; the sidecar tells either from a file that was edited.

        Args:
            captions: The table.
            inputs: (N, 4) what was noted of each row's image.
            counts: For the sidecar.
        """

        def note(partial: Path) -> None:
            hashes = [_sha256(file) for file in (partial, self.output) if file.exists()]
            noted = [" ".join(map(str, row)) for row in inputs.tolist()]
            self._write_sidecar({**self._read_sidecar(), **counts, "output_sha256": hashes, INPUTS: noted})

        write_captions(captions, self.output, note)

    def remove_folder(self) -> None:
        """Delete the parts: renamed first, so that half of them is never taken for all."""
        aside = beside(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(aside)
            shutil.rmtree(aside)

    def remove(self) -> None:
        """Delete all of it."""
        self.output.unlink(missing_ok=True)
        self.remove_folder()
        self.sidecar.unlink(missing_ok=True)

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.jsonl"

    @staticmethod
    def _read(file: Path) -> list[Record]:
        if not file.exists():
            return []
        try:
            lines = file.read_bytes().decode().split("\n")
            return [json.loads(line) for line in lines if line]
        except ValueError as error:
            raise InputError(f"{str(file)!r} is damaged ({one_line(error)}); delete it and run again") from None

    def _read_sidecar(self) -> dict[str, Any]:
        return read_sidecar(self.output)

    def _write_sidecar(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_beside(self.sidecar, lambda file: file.write_text(text, encoding="utf-8"))


def sidecar_of(output: Path) -> Path:
    """Where the provenance of a caption file is."""
    return output.with_name(f"{output.name}.json")


def read_sidecar(output: Path) -> dict[str, Any]:
    """Provenance and notes of a caption file; empty when it has none.

    Raises:
        InputError: There is one that can't be read.
    """
    path = sidecar_of(output)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is damaged: {one_line(error)}") from None
    return content if isinstance(content, dict) else {}


def noted_inputs(sidecar: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """What a sidecar notes of each row's image (N, 4); None of earlier versions."""
    if INPUTS not in sidecar:
        return None
    return np.array([[int(value) for value in row.split()] for row in sidecar[INPUTS]], dtype=np.int64)


def inputs_of(record: Record) -> list[int]:
    """What a record notes of its image, 0 where an earlier version noted nothing."""
    return [int(record.get(name, 0)) for name in INPUT_COLUMNS]


def is_done(record: Record) -> bool:
    """Whether a row needs not be asked again."""
    return not str(record["status"]).startswith(FAILED)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
