"""Compute some stimuli of a features file again, and write down how far it is from them.

K stimuli, N stimuli, L layers, D hidden size.
"""

import math
import random
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_extract import __version__
from lit_extract.common.errors import InputError
from lit_extract.common.untrusted import shorten
from lit_extract.parity import figures
from lit_extract.parity.certificate import CERTIFICATE_FORMAT, FAIL, PASS, Where, checksums
from lit_extract.parity.language import LanguageReference
from lit_extract.parity.reference import Reference
from lit_extract.parity.vision import VisionReference
from lit_extract.storage.features import Features, load_features
from lit_extract.storage.provenance import kind_of

OTHERS = 64  # rows that stand for all when it is asked how far stimuli are apart


def certify(file: Path, k: int, seed: int, where: Where) -> dict[str, Any]:
    """Compute K stimuli of a sound features file again and compare.

    Args:
        file: The features file.
        k: How many stimuli.
        seed: Which ones.
        where: What the file does not say.

    Returns:
        The certificate; docs/store-format.md says what is in it.

    Raises:
        InputError: The model or the stimuli can't be rebuilt, or are others than those of the file.
    """
    identity = checksums(file)
    features = load_features(file)
    bad = {*features.metadata["bad_input_rows"], *features.metadata["not_finite_rows"]}
    good = [row for row in range(features.shape[0]) if row not in bad]
    if not good:
        raise InputError("parity: none of its rows is finite")
    generator = random.Random(seed)
    rows = sorted(generator.sample(good, min(k, len(good))))
    others = sorted(generator.sample(good, min(OTHERS, len(good))))
    try:
        reference = _reference(features, where)
        again = _Recomputed.of(reference, rows, features.provenance["precision"])
    except torch.OutOfMemoryError:
        raise InputError("device: in float32 the model does not fit the GPU; give --device cpu") from None
    if again.feats.shape[1:] != features.shape[1:]:
        found, expected = ("×".join(map(str, shape[1:])) for shape in (features.shape, again.feats.shape))
        raise InputError(f"parity: the file has {found} layers and dimensions, but the model gives {expected}")
    if missing := [f"row_{name}" for name in again.losses if f"row_{name}" not in features.extras]:
        raise InputError(f"parity: the file has no {', '.join(missing)}, but its provenance says loss")
    return {
        "format": CERTIFICATE_FORMAT,
        "file": file.name,
        "records_crc32": identity,
        **_judge(features, rows, others, bad, again),
        "reference": reference.way,
        "seed": seed,
        "device": torch.cuda.get_device_name() if reference.device == "cuda" else "cpu",
        "versions": {name: version(name) for name in reference.packages} | {"lit_extract": __version__},
        "versions_of_the_run": {name: _version(features.provenance.get(name)) for name in reference.packages},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _reference(features: Features, where: Where) -> Reference:
    kind = LanguageReference if kind_of(features.provenance) == "language" else VisionReference
    return kind(features, where)


@dataclass(frozen=True)
class _Recomputed:
    """What a reference gives.

    Args:
        feats: (K, L, D) float64.
        rounded: The same in the precision of the run, if that is another.
        losses: ``loss`` and ``bpb``, (K,) float64 each, of captions that have them.
        num_params: Parameters of the model.
    """

    feats: Tensor
    rounded: Tensor | None
    losses: dict[str, Tensor]
    num_params: int

    @classmethod
    def of(cls, reference: Reference, rows: list[int], precision: str) -> "_Recomputed":
        """Of K stimuli: first in float32, then as the run was."""
        computed = [reference.recompute(row) for row in rows]
        stacked = {name: torch.stack([one[name] for one in computed]).double() for name in computed[0]}
        rounded = None
        if precision != "32-true":
            reference.round_as(precision)
            rounded = torch.stack([reference.recompute(row)["feats"] for row in rows]).double()
        return cls(stacked.pop("feats"), rounded, stacked, reference.num_params)


def _judge(features: Features, rows: list[int], others: list[int], bad: set[int], again: _Recomputed) -> dict[str, Any]:
    """The verdict, and the figures it rests on."""
    feats, layers, precision = features.feats, features.layers, features.provenance["precision"]
    limits = figures.FLOAT32 if precision == "32-true" else figures.BF16
    found = feats[rows].double()
    spread = figures.median_distances(again.feats, rows, feats, others)
    compared = figures.compare(layers, found, again.feats, again.rounded, spread)
    telling = figures.most_telling(found, again.feats, spread)
    distances = figures.row_distances(feats, telling, again.feats[:, telling], bad)
    stimuli, mistaken = figures.place_rows(rows, features.stimulus_ids, distances, spread[:, telling], limits.of_spread)
    losses = figures.loss_errors(
        {name: features.extras[f"row_{name}"][rows].double() for name in again.losses}, again.losses
    )
    failures = [
        *figures.beyond(compared, limits, precision),
        *figures.misplaced(layers, found, again.feats),
        *mistaken,
        *(
            f"{name} differs by {error:.2g} of it (at most {limits.loss:g} wanted)"
            for name, error in losses.items()
            if error > limits.loss
        ),
    ]
    if again.num_params != features.num_params:
        failures.append(f"num_params is {features.num_params}, but the model has {again.num_params}")
    return {
        "verdict": FAIL if failures else PASS,
        "failures": failures,
        "remarks": figures.hidden(compared, again.feats, precision),
        "precision": precision,
        "stimuli": stimuli,
        "telling_layer": layers[telling],
        "layers": [{key: _plain(value) for key, value in asdict(figure).items()} for figure in compared],
        "loss": {name: _plain(error) for name, error in losses.items()},
        "limits": asdict(limits),
    }


def _version(recorded: object) -> str | None:
    return shorten(recorded) if isinstance(recorded, str) else None


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
