"""Finished captions on disk: one JSON-lines file per shard, whole or not at all.

A record is a row: ``index``, ``stimulus_id``, ``caption``, ``status``, and notes on its image. The provenance is in a
JSON file next to the output, its sidecar, which stays after the parts are deleted.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator, FailFast, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic requires it before Python 3.12

from lit_extract.captioning.output import FAILED, sha256_of, write_captions
from lit_extract.common.errors import InputError, one_line
from lit_extract.common.files import replacing
from lit_extract.common.untrusted import MAX_RECORD_BYTES, Count, read_regular, shorten, validate_json
from lit_extract.storage.layout import INPUT_COLUMNS, INPUTS
from lit_extract.storage.provenance import differing

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]

MAX_LINE_VALUES = 100_000  # of a record, which has eight; commas in a caption also count
MAX_SIDECAR_BYTES, MAX_SIDECAR_VALUES = 32 * 2**20, 500_000  # one value of 50 bytes for each image


def without_nul(text: str) -> str:
    """Return a text that a table can hold."""
    if "\0" in text:
        raise ValueError("must have no NUL characters")
    return text


def _inputs_line(text: str) -> str:
    is_four = re.fullmatch(r"-?[0-9]{1,19}( -?[0-9]{1,19}){3}", text)
    if not is_four or any(not -(2**63) <= int(number) < 2**63 for number in text.split()):
        raise ValueError(f"must be {len(INPUT_COLUMNS)} 64-bit integers")
    return text


class Record(TypedDict):
    """A row: a line of a part."""

    index: Count
    stimulus_id: int | str
    caption: Annotated[str, AfterValidator(without_nul)]
    status: Annotated[str, AfterValidator(without_nul)]
    n_bytes: NotRequired[Integer]  # these four in the order of INPUT_COLUMNS; missing in earlier versions
    mtime_ns: NotRequired[Integer]
    content: NotRequired[Integer]
    rotated: NotRequired[Integer]


class Sidecar(TypedDict, total=False):
    """Information about an output besides its rows."""

    provenance: dict[str, Any]
    notes: dict[str, Any]
    failed: Count
    cut_off: Count
    exif_rotations: Count
    output_sha256: Annotated[list[str], FailFast()]
    inputs: Annotated[list[Annotated[str, AfterValidator(_inputs_line)]], FailFast()]


_RECORD, _SIDECAR = TypeAdapter(Record), TypeAdapter(Sidecar)


class Parts:
    """The parts of one output file, a CSV or Parquet."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.parts")
        self.sidecar = sidecar_of(output)

    def begin(self, provenance: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Write the provenance before the first part."""
        self._write_sidecar({"provenance": provenance, "notes": notes})
        self.folder.mkdir(exist_ok=True)

    def check_provenance(self, provenance: Mapping[str, Any]) -> bool:
        """Return whether a run was started here; refuse output with other settings, or of another program."""
        if not self.output.exists() and not any(self.folder.glob("*.jsonl")):
            return False  # at most a run that ended before its first part
        if not self.sidecar.exists():
            raise InputError(
                f"{str(self.output)!r} exists already, but it is unknown how it was made ({self.sidecar.name} is "
                "missing); choose another --output, or pass --overwrite to replace it"
            )
        if difference := differing(read_sidecar(self.output).get("provenance", {}), provenance):
            raise InputError(
                f"{str(self.output)!r} was started with other settings: {difference}. Run with the same settings to "
                "resume it, pass --overwrite to start from scratch, or choose another --output"
            )
        return True

    def write(self, shard: int, records: Iterable[Record]) -> int:
        """Write the records of a shard, together with existing ones; return the bytes written."""
        merged = {record["index"]: record for record in _read_part(self._file(shard))}
        merged |= {record["index"]: record for record in records}
        lines = [json.dumps(merged[index], ensure_ascii=False) for index in sorted(merged)]
        with replacing(self._file(shard)) as partial:
            return partial.write_bytes("".join(f"{line}\n" for line in lines).encode())

    def records(self, stimuli: Sequence[int | str]) -> dict[int, Record]:
        """Return all records, by row; refuse a duplicate row, or one whose stimulus differs from ``stimuli``."""
        records: dict[int, Record] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for record in _read_part(file):
                row, stimulus = record["index"], record["stimulus_id"]
                if row in records or row >= len(stimuli) or stimulus != stimuli[row]:
                    raise _damaged(file, f"row {row} of stimulus {shorten(stimulus)} does not belong there")
                records[row] = record
        return records

    def is_finished(self) -> bool:
        """Return whether the output exists and no image must be tried again."""
        return self.output.exists() and not self.folder.exists() and read_sidecar(self.output).get("failed") == 0

    def check_untouched(self) -> None:
        """Refuse to replace an edited output."""
        if self.output.exists() and sha256_of(self.output) not in read_sidecar(self.output).get("output_sha256", []):
            raise InputError(
                f"{str(self.output)!r} was edited since it was written; move it elsewhere, or pass --overwrite"
            )

    def publish(self, captions: pd.DataFrame, inputs: NDArray[np.int64], **counts: int) -> None:
        """Write the output, replacing an earlier one; the sidecar has the hashes of both.

        ``inputs`` (N, 4) is the record of each row's image; ``counts`` are for the sidecar.
        """

        def note(partial: Path) -> None:
            hashes = [sha256_of(file) for file in (partial, self.output) if file.exists()]
            noted = [" ".join(map(str, row)) for row in inputs.tolist()]
            self._write_sidecar({**read_sidecar(self.output), **counts, "output_sha256": hashes, INPUTS: noted})

        write_captions(captions, self.output, note)

    def remove_folder(self) -> None:
        """Delete the parts; they are renamed first, so an incomplete set is never taken for all."""
        aside = self.folder.with_name(f".{self.folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(aside)
            shutil.rmtree(aside)

    def remove(self) -> None:
        """Delete the output, its sidecar and its parts."""
        self.output.unlink(missing_ok=True)
        self.remove_folder()
        self.sidecar.unlink(missing_ok=True)

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.jsonl"

    def _write_sidecar(self, content: Mapping[str, Any]) -> None:
        with replacing(self.sidecar) as partial:
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_part(file: Path) -> list[Record]:
    try:
        lines = read_regular(file, MAX_RECORD_BYTES).split(b"\n")
        return [validate_json(_RECORD, line, "a line", MAX_LINE_VALUES) for line in lines if line]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _damaged(file, error.strerror or one_line(error)) from None
    except InputError as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, why: str) -> InputError:
    return InputError(f"{str(file)!r} is damaged ({why}); delete it and run the same command again")


def sidecar_of(output: Path) -> Path:
    """Return the path of a caption file's provenance."""
    return output.with_name(f"{output.name}.json")


def read_sidecar(output: Path) -> Sidecar:
    """Return the provenance and notes of a caption file; empty if it has none."""
    path = sidecar_of(output)
    what = f"{str(path)!r} is damaged; restore it, or move it elsewhere"
    try:
        return validate_json(_SIDECAR, read_regular(path, MAX_SIDECAR_BYTES), what, MAX_SIDECAR_VALUES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or one_line(error)}") from None


def noted_inputs(output: Path, n_rows: int) -> NDArray[np.int64] | None:
    """Return the record of each row's image in the sidecar (N, 4); None for earlier versions."""
    if (noted := read_sidecar(output).get("inputs")) is None:
        return None
    if len(noted) != n_rows:
        raise InputError(f"{str(sidecar_of(output))!r} is damaged: it has {len(noted)} images instead of {n_rows}")
    return np.array([[int(value) for value in row.split()] for row in noted], dtype=np.int64)


def inputs_of(record: Record | None) -> list[int]:
    """Return the image fields of a record; 0 if there is no record, or an earlier version wrote none."""
    noted: Mapping[str, Any] = record or {}
    return [noted.get(name, 0) for name in INPUT_COLUMNS]


def is_done(record: Record) -> bool:
    """Return whether a row need not be asked again."""
    return not record["status"].startswith(FAILED)
