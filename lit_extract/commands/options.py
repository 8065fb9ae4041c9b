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

# As argparse takes them, which gives the rest to predict.
SUBMIT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--cluster": {
        "choices": ("slurm", "local"),
        "default": "slurm",
        "help": "local: no queue, but a sweep in the background of this machine. Default: slurm.",
    },
    "--partition": {"metavar": "NAME", "help": "Where jobs run; default: the cluster's."},
    "--account": {"metavar": "NAME", "help": "Who pays; default: yours."},
    "--time": {"metavar": "TIME", "help": "Limit of a job, as 4:00:00; default: three times what plan estimates."},
    "--memory": {"metavar": "GB", "type": int, "help": "Of a job; default: half as much again as plan estimates."},
    "--gpus": {
        "metavar": "[TYPE:]N",
        "help": "GPUs of a model, of one machine; with more than one, a task each. Default: 1, on the CPU 0.",
    },
    "--cpus": {"metavar": "N", "type": int, "default": 8, "help": "Cores of a task. Default: 8."},
    "--sbatch": {
        "metavar": "NAME=VALUE",
        "action": "append",
        "default": [],
        "help": "A further option of sbatch, as qos=long; may be given several times.",
    },
    "--rows": {"metavar": "N", "help": "As of plan: number of stimuli, when the dataset is not on this machine."},
    "--card_memory": {"metavar": "GB", "help": "As of plan: of the GPU; default: an A40's 48."},
}
