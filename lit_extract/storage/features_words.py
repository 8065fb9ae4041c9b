"""Short descriptions of features, for notebooks and the Python prompt."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lit_extract.common.errors import counted, name_some, nearest
from lit_extract.common.untrusted import shorten
from lit_extract.storage.layout import FLOAT32, layers_in_words, shapes_in_words

if TYPE_CHECKING:
    from lit_extract.storage.features import Features

# Means that a file of captions has, and their units.
UNITS = {"loss": "nats per token", "bpb": "bits per byte"}


def size_of(features: "Features") -> str:
    """Return the shape in words, such as 24 stimuli × 12 layers × 768 dimensions."""
    stimuli = counted(len(features.stimulus_ids), "stimulus", "stimuli")
    shapes = shapes_in_words(features.layer_shapes)
    dtype = "" if features.dtype == FLOAT32 else f", {features.dtype}"
    return f"{stimuli} × {counted(len(features.layers), 'layer')} × {shapes} dimensions{dtype}"


def means_of(features: "Features") -> dict[str, str]:
    """Return how well the model predicts the captions, as means over stimuli, with units."""
    return {
        name: f"{float(features.extras[name]):.4g} {unit}" for name, unit in UNITS.items() if name in features.extras
    }


def facts_of(features: "Features") -> dict[str, str]:
    """Return the most important facts about features, by name."""
    provenance, layers, n = features.provenance, features.layers, len(features.stimulus_ids)
    weights = ", random weights" if provenance.get("weights") == "untrained" else ""
    subset = f", {provenance['subset']}" if provenance.get("subset") else ""
    facts = {
        "model": f"{provenance.get('model', 'unknown')}{weights}",
        "dataset": f"{provenance.get('dataset', 'unknown')}{subset}",
        "size": size_of(features),
        "layers": layers_in_words(layers),
        "pooling": str(provenance.get("pool")),
        "rows done": "" if features.n_done == n else f"{features.n_done:,} of {n:,}",
        **means_of(features),
        "file": str(features.path),
    }
    return {name: shorten(value, 200) for name, value in facts.items() if value}


def as_text(features: "Features") -> str:
    """Return one line per fact."""
    facts = facts_of(features)
    width = max(map(len, facts))
    return "\n".join(["Features", *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def as_html(features: "Features") -> str:
    """Return a table with one line per fact."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in facts_of(features).items()
    )
    return f"<table><caption>Features</caption>{rows}</table>"


def in_words(missing: Mapping[str, object], features: "Features") -> str:
    """Return which ids are missing, as they were given, by their keys; and what may have been meant."""
    key, given = next(iter(missing.items()))
    if isinstance(given, int | np.integer) and 0 <= given < len(features):
        hint = f"; row {given} by number is {by_number(features)}[{given}]"
    else:
        hint = nearest(key, map(str, features))
    named = name_some([shorten(str(stimulus)) for stimulus in missing.values()])
    return f"{f'{len(missing)} stimuli:' if len(missing) > 1 else 'stimulus'} {named}{hint}"


def by_number(features: "Features") -> str:
    """Return the Python expression for rows by number."""
    return "features.feats" if len({*features.layer_shapes}) == 1 else "features.layer(name)"
