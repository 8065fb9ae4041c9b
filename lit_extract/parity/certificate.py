"""The parity certificate beside a features file: ``<file>.parity.json``, and which bytes it is of. No torch here."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import FailFast, TypeAdapter
from typing_extensions import TypedDict

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.untrusted import Text, read_regular, validate_json

CERTIFICATE_FORMAT = 1
PASS, FAIL = "pass", "fail"
MAX_CERTIFICATE_BYTES = 16 * 2**20  # it has 100 for each of the stimuli
MAX_CERTIFICATE_VALUES = 500_000


class Certificate(TypedDict):
    """What is read of a certificate again; it has more."""

    format: Literal[1]  # CERTIFICATE_FORMAT
    verdict: Literal["pass", "fail"]
    failures: Annotated[list[Text], FailFast()]
    remarks: Annotated[list[Text], FailFast()]
    precision: Text
    stimuli: Annotated[list[dict[str, Any]], FailFast()]
    records_crc32: dict[str, Any]  # which must be those of the file


_CERTIFICATE = TypeAdapter(Certificate)


@dataclass(frozen=True)
class Where:
    """What a certificate needs that the features file does not say, as it differs between machines.

    Args:
        device: "cpu" or "cuda"; default: a GPU if there is one.
        checkpoint: Local weights.
        root: Folder of the dataset.
        captions: The caption file.
        trust_remote_code: Run code that comes with the model.
        model: Name of the model of the file, to say that it is trusted although models.yml does not list it.
    """

    device: str | None = None
    checkpoint: str | None = None
    root: str | None = None
    captions: str | None = None
    trust_remote_code: bool = False
    model: str | None = None


def certificate_path(file: Path) -> Path:
    """Where the certificate of a features file is."""
    return file.with_name(f"{file.stem}.parity.json")


def checksums(file: Path) -> dict[str, str]:
    """CRC-32 of each record of a ``.pt``, as its directory has them: the identity of its content, known at once.

    Raises:
        zipfile.BadZipFile: It is no archive.
        OSError: It can't be read.
    """
    with zipfile.ZipFile(file) as archive:
        return {record.filename: f"{record.CRC:08x}" for record in archive.infolist()}


def read_certificate(file: Path) -> dict[str, Any] | None:
    """The certificate of a features file, None when it has none.

    Raises:
        InputError: It is not whole, or of another file than what is there now.
    """
    path = certificate_path(file)
    what = f"{path.name} is no certificate"
    try:
        content = read_regular(path, MAX_CERTIFICATE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or one_line(error)}") from None
    certificate = validate_json(_CERTIFICATE, content, what, MAX_CERTIFICATE_VALUES)
    if (certificate["verdict"] == PASS) is bool(certificate["failures"]):
        raise InputError(f"{what}: its verdict is {certificate['verdict']!r}")
    if certificate["records_crc32"] != checksums(file):
        raise InputError(f"{path.name} is of another file: this one has changed since, or took its place")
    return {**certificate}


def write_certificate(file: Path, certificate: dict[str, Any]) -> Path:
    """Beside the features file: written under another name, then renamed.

    Raises:
        InputError: There is no writing there.
    """
    path = certificate_path(file)
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # a link there would lead elsewhere, a named pipe nowhere
        part.write_text(json.dumps(certificate, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"can't write {str(path)!r}: {error}") from error
    return path


def describe(certificate: dict[str, Any]) -> list[str]:
    """A certificate as a table: all layers, or of many the first, the last and the worst."""
    layers = certificate["layers"]
    shown = set(range(len(layers)))
    if len(layers) > LAYERS_SHOWN:
        by_error = sorted(shown, key=lambda k: _finite(layers[k]["relative_error"]), reverse=True)
        shown = {0, len(layers) - 1, *by_error[: LAYERS_SHOWN - 2]}
    head = ("layer", "max |error|", "of norm", "cosine", "of spread", "of rounding")
    cells = [head, *(_cells(layers[k]) for k in sorted(shown))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
    if len(shown) < len(layers):
        lines.append(f"the first, the last and the worst of {len(layers)} layers")
    for name, error in certificate["loss"].items():
        lines.append(f"{name}: {_finite(error):.2g} off at most, relative")
    n = len(certificate["stimuli"])
    first = sum(stimulus["rank"] == 1 for stimulus in certificate["stimuli"])
    lines.append(f"{first} of {n} stimuli are nearest to their own row, in {certificate['telling_layer']}")
    return [f"  {line}" for line in lines]


LAYERS_SHOWN = 12


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    of_spread, times = layer["of_spread"], layer["times_rounding"]
    return (
        layer["layer"],
        f"{layer['max_abs_error']:.1e}",
        f"{_finite(layer['relative_error']):.1e}",
        f"{layer['cosine']:.7f}",
        "" if of_spread is None else f"{of_spread:.1e}",
        "" if times is None else f"{times:.2f}",
    )


def _finite(number: float | None) -> float:
    return float("inf") if number is None else number
