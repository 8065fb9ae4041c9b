"""Compute some stimuli of a features file again, and measure how far the file is from the result.

K stimuli that are computed again, N stimuli.
"""

import math
import random
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lit_extract import __version__
from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.parity import deviations
from lit_extract.parity.certificate import CERTIFICATE_FORMAT, FAIL, PASS, RebuildSettings, checksums
from lit_extract.parity.language import LanguageReference
from lit_extract.parity.provenance_form import TRANSFORMERS_VISION, form_of
from lit_extract.parity.reference import Recomputed, Reference
from lit_extract.parity.text_encoder import TextEncoderReference
from lit_extract.parity.transformers_vision import TransformersVisionReference
from lit_extract.parity.vision import VisionReference
from lit_extract.parity.vision_language import VisionLanguageReference
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.layout import shapes_in_words

REFERENCES: dict[str, type[Reference]] = {
    "vision": VisionReference,
    TRANSFORMERS_VISION: TransformersVisionReference,
    "language": LanguageReference,
    "text_encoder": TextEncoderReference,
    "vision_language": VisionLanguageReference,
}
OTHERS = 64  # rows that represent all others in the distances between stimuli


def certify(file: Path, k: int, seed: int, settings: RebuildSettings) -> dict[str, Any]:
    """Compute K stimuli of a sound features file again, compare, and return the certificate.

    docs/store-format.md describes the certificate. Raises InputError if the model or the stimuli can't be rebuilt, or
    differ from those of the file.
    """
    identity = checksums(file)
    features = load_features(file)
    bad = {*features.metadata["bad_input_rows"], *features.metadata["not_finite_rows"]}
    good = [row for row in range(len(features.stimulus_ids)) if row not in bad]
    if not good:
        raise InputError("parity: the file has no finite row")
    generator = random.Random(seed)
    rows, others = (sorted(generator.sample(good, min(count, len(good)))) for count in (k, OTHERS))
    try:
        reference = REFERENCES[form_of(features.provenance)](features, settings)
        again = reference.recompute(rows)
    except torch.OutOfMemoryError:
        raise InputError("device: in float32 the model does not fit the GPU; pass --device cpu") from None
    if again.layer_shapes != features.layer_shapes:
        found, expected = (
            f"{len(shapes)}×{shapes_in_words(shapes)}" for shapes in (features.layer_shapes, again.layer_shapes)
        )
        raise InputError(f"parity: the file has {found} layers and dimensions, but the model gives {expected}")
    judged = _judge(features, rows, others, bad, again)
    recorded = {name: features.provenance.get(name) for name in reference.packages}
    return {
        "format": CERTIFICATE_FORMAT,
        "file": file.name,
        "records_crc32": identity,
        **judged,
        "remarks": [*reference.remarks, *judged["remarks"]],
        "reference": reference.way,
        "seed": seed,
        "device": torch.cuda.get_device_name() if reference.device == "cuda" else "cpu",
        "versions": {name: version(name) for name in reference.packages} | {"lit_extract": __version__},
        "versions_of_the_run": {name: shorten(v) if isinstance(v, str) else None for name, v in recorded.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _judge(features: Features, rows: list[int], others: list[int], bad: set[int], again: Recomputed) -> dict[str, Any]:
    """Compare, and return the verdict with the numbers behind it."""
    layers, precision = features.layers, features.provenance["precision"]
    limits = deviations.FLOAT32 if precision == "32-true" else deviations.BF16
    again = again.kept_as(features.dtype)
    found = features.padded(rows).double()
    spread = deviations.median_distances(again.feats, rows, features.padded(others).double(), others)
    compared = deviations.compare(layers, found, again.feats, again.rounded, spread)
    telling = deviations.most_telling(found, again.feats, spread)
    told = features.layer(telling).flatten(1)
    distances = deviations.row_distances(told, again.feats[:, telling, : told.shape[1]], bad)
    stimuli, mistaken = deviations.place_rows(
        rows, features.stimulus_ids, distances, spread[:, telling], limits.of_spread
    )
    losses = deviations.loss_errors(
        {name: features.extras[f"row_{name}"][rows].double() for name in again.losses}, again.losses
    )
    failures = [
        *deviations.beyond(compared, limits, precision),
        *deviations.misplaced(layers, found, again.feats),
        *mistaken,
        *(
            f"{name} has a relative error of {error:.2g} (at most {limits.loss:g} is allowed)"
            for name, error in losses.items()
            if error > limits.loss
        ),
    ]
    if again.num_params != features.num_params:
        failures.append(f"num_params is {features.num_params}, but the model has {again.num_params}")
    return {
        "verdict": FAIL if failures else PASS,
        "failures": failures,
        "remarks": deviations.hidden(compared, again.feats, precision),
        "precision": precision,
        "stimuli": stimuli,
        "telling_layer": layers[telling],
        "layers": [_plain(asdict(layer)) for layer in compared],
        "loss": _plain(losses),
        "limits": asdict(limits),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values for JSON, which has neither NaN nor infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
