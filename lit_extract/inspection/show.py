"""Describe one features file or store."""

from lit_extract.common.errors import counted
from lit_extract.common.untrusted import shorten
from lit_extract.storage import rounding
from lit_extract.storage.features import Features
from lit_extract.storage.features_words import means_of, size_of
from lit_extract.storage.layout import N_SINKS

_LONGEST = 4000  # characters of a value that is printed
_IN_WORDS = ("layers", "pool", "n_stimuli", rounding.NOTE)  # of the provenance and the notes


def describe(features: Features, path: str) -> list[str]:
    """Return the lines that ``lit-extract show`` prints about the features at ``path``."""
    pool, layers, metadata = features.provenance["pool"], features.layers, features.metadata
    lines = [f"{size_of(features)}, pooling {pool}"]
    lines.append(f"{counted(features.n_done, 'row')} done; layers {shorten(', '.join(layers), _LONGEST)}")
    lines += [f"mean {name}: {value}" for name, value in means_of(features).items()]
    known = {**features.provenance, **metadata["notes"]}
    for name in _IN_WORDS:
        known.pop(name, None)
    known |= {key: metadata[key] for key in ("bad_input_rows", "not_finite_rows") if metadata[key]}
    lines += [f"{shorten(key)}: {shorten(str(value), _LONGEST)}" for key, value in known.items()]
    if N_SINKS in features.extras:
        means = features.extras[N_SINKS].float().mean(dim=0).tolist()
        by_layer = ", ".join(f"{layer} {mean:.2f}" for layer, mean in zip(layers, means, strict=True))
        lines.append(f"attention sinks left out, mean over captions: {shorten(by_layer, _LONGEST)}")
    lines.append(rounding.describe(metadata, layers, pool))
    if warning := rounding.warning(metadata, layers, pool):
        lines.append(f"warning: {warning}")
    return [shorten(path, _LONGEST), *(f"  {line}" for line in lines)]
