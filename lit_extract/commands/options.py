"""The options of predict and plan that neither a class nor ``predict_trainer`` takes; known without torch."""

from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt

from lit_extract.commands.arguments import FLAG
from lit_extract.modules.registry import default_models_file

# arguments of extract that are no options of their own, or are listed below
NOT_FROM_EXTRACT = frozenset({"model", "data", "trainer", "overwrite"})

PREDICT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--output": {"type": str | None, "help": "Captions only: the CSV or Parquet to make."},
    "--overwrite": {**FLAG, "help": "Start from scratch: delete an existing store or features files."},
    "--quiet": {**FLAG, "help": "Print only warnings, errors and the result, without any progress."},
    "--profile": {
        **FLAG,
        "help": "Print at the end where the time went. On a GPU nothing overlaps then, which takes longer.",
    },
}

PLAN_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    **PREDICT_OPTIONS,
    "--models": {
        "type": str | None,
        "nargs": "?",
        "const": str(default_models_file()),
        "help": "Estimate every model of the config's kind in this models file; without a FILE, in models.yml.",
    },
    "--match": {"type": str | None, "help": "Only models like this: a part of their names, or a pattern as '*clip*'."},
    "--rows": {"type": PositiveInt | None, "help": "Number of stimuli, when the dataset is not on this machine."},
    "--card_memory": {
        "type": PositiveFloat | None,
        "help": "GB of the GPU; default: the GPU here, else an A40's 48.",
    },
    "--host_memory": {
        "type": PositiveFloat | None,
        "help": "GB of the host; default: what this machine, its cgroup or SLURM allows, when the run is for it.",
    },
    "--untrained": {**FLAG, "help": "Random weights, as --model.untrained true."},
    "--json": {**FLAG, "help": "Print JSON, in bytes."},
}
