"""The parity certificate next to a features file, ``<file>.parity.json``, and the file's identity. No torch here."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import FailFast, TypeAdapter
from typing_extensions import TypedDict

from lit_extract.common.errors import InputError, one_line
from lit_extract.common.files import replacing
from lit_extract.common.untrusted import Text, read_regular, validate_json

CERTIFICATE_FORMAT = 1
PASS, FAIL = "pass", "fail"
MAX_CERTIFICATE_BYTES = 16 * 2**20  # a certificate has 100 bytes per stimulus
MAX_CERTIFICATE_VALUES = 500_000
LAYERS_SHOWN = 12


@dataclass(frozen=True)
class RebuildSettings:
    """Settings to find the model and the stimuli of a features file on this machine; the file does not have them."""

    device: str | None = None  # "cpu" or "cuda"; default: the GPU if there is one
    checkpoint: str | None = None  # local weights
    root: str | None = None  # folder of the dataset
    captions: str | None = None  # the caption file
    trust_remote_code: bool = False  # run code that comes with the model
    model: str | None = None  # model of the file, to trust it although models.yml does not list it


class Certificate(TypedDict):
    """The keys of a certificate that are read back; a certificate has more."""

    format: Literal[1]  # CERTIFICATE_FORMAT
    verdict: Literal["pass", "fail"]
    failures: Annotated[list[Text], FailFast()]
    remarks: Annotated[list[Text], FailFast()]
    precision: Text
    stimuli: Annotated[list[dict[str, Any]], FailFast()]
    records_crc32: dict[str, Any]  # must be those of the file


_CERTIFICATE = TypeAdapter(Certificate)


def certificate_path(file: Path) -> Path:
    """Return the path of the certificate of a features file."""
    return file.with_name(f"{file.stem}.parity.json")


def checksums(file: Path) -> dict[str, str]:
    """Return the CRC-32 of each record of a ``.pt`` from its directory: the identity of its content."""
    with zipfile.ZipFile(file) as archive:
        return {record.filename: f"{record.CRC:08x}" for record in archive.infolist()}


def read_certificate(file: Path) -> dict[str, Any] | None:
    """Read the certificate of a features file; None if there is none. It must be complete and of exactly this file."""
    path = certificate_path(file)
    what = f"{path.name} is not a certificate"
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
        raise InputError(f"{path.name} belongs to another file: this one was changed or replaced since")
    return {**certificate}


def write_certificate(file: Path, certificate: dict[str, Any]) -> Path:
    """Write the certificate of a features file; it appears only when it is complete."""
    path = certificate_path(file)
    text = json.dumps(certificate, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        with replacing(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"can't write {str(path)!r}: {error}") from error
    return path


def describe(certificate: dict[str, Any]) -> list[str]:
    """Return the lines of a table of a certificate: all layers, or if they are many, the first, the last, the worst."""
    layers = certificate["layers"]
    places = sorted(range(len(layers)), key=lambda k: _finite(layers[k]["relative_error"]), reverse=True)
    shown = sorted(places if len(places) <= LAYERS_SHOWN else {0, len(places) - 1, *places[: LAYERS_SHOWN - 2]})
    width = max(len("layer"), *(len(layers[k]["layer"]) for k in shown))
    lines = [f"{'layer':{width}}  max |error|  of norm     cosine  of spread  of rounding"]
    for layer in (layers[k] for k in shown):
        spread, rounding = layer["of_spread"], layer["times_rounding"]
        cells = (
            f"{layer['layer']:{width}}",
            f"{layer['max_abs_error']:11.1e}",
            f"{_finite(layer['relative_error']):7.1e}",
            f"{layer['cosine']:9.7f}",
            f"{'' if spread is None else f'{spread:.1e}':>9}",
            f"{'' if rounding is None else f'{rounding:.2f}':>11}",
        )
        lines.append("  ".join(cells).rstrip())
    if len(shown) < len(layers):
        lines.append(f"the first, the last and the worst of {len(layers)} layers")
    for name, error in certificate["loss"].items():
        lines.append(f"{name}: relative error at most {_finite(error):.2g}")
    ranks = [stimulus["rank"] for stimulus in certificate["stimuli"]]
    lines.append(
        f"{ranks.count(1)} of {len(ranks)} stimuli are nearest to their own row, in {certificate['telling_layer']}"
    )
    return [f"  {line}" for line in lines]


def _finite(number: float | None) -> float:
    return float("inf") if number is None else number
