"""Options of predict, plan and submit that are not arguments of a class or of ``predict_trainer``; no torch needed."""

from collections.abc import Mapping
from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt

from lit_extract.commands.arguments import FLAG
from lit_extract.modules.registry import default_models_file

# arguments of extract that are not options, or are listed below
NOT_FROM_EXTRACT = frozenset({"model", "data", "trainer", "overwrite"})

PREDICT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--output": {"type": str | None, "help": "For captions only: the CSV or Parquet file to write."},
    "--overwrite": {**FLAG, "help": "Start from scratch: delete an existing store or features files."},
    "--quiet": {**FLAG, "help": "Print only warnings, errors and the result, no progress."},
    "--profile": {
        **FLAG,
        "help": "Print at the end where the time went. On a GPU this is slower, because nothing overlaps.",
    },
}

PLAN_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    **PREDICT_OPTIONS,
    "--models": {
        "type": str | None,
        "nargs": "?",
        "const": str(default_models_file()),
        "help": "Plan every model of the config's kind in this models file; without a FILE, in models.yml.",
    },
    "--match": {"type": str | None, "help": "Only models with this text in their name, or whose name fits '*clip*'."},
    "--rows": {"type": PositiveInt | None, "help": "Number of stimuli, if the dataset is not on this machine."},
    "--card_memory": {
        "type": PositiveFloat | None,
        "help": "GPU memory in GB; default: that of the GPU here, else 48 (an A40).",
    },
    "--host_memory": {
        "type": PositiveFloat | None,
        "help": "Host memory in GB; default: what this machine, its cgroup or SLURM allows; not checked for a GPU "
        "that is not here.",
    },
    "--untrained": {**FLAG, "help": "Random weights, like --model.untrained true."},
    "--json": {**FLAG, "help": "Print JSON; sizes are in bytes."},
}

# In argparse's form; submit passes all other options to predict.
SUBMIT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--cluster": {
        "choices": ("slurm", "local"),
        "default": "slurm",
        "help": "Where to run: slurm, or local for a sweep in the background of this machine. Default: slurm.",
    },
    "--partition": {"metavar": "NAME", "help": "SLURM partition; default: the cluster's."},
    "--account": {"metavar": "NAME", "help": "SLURM account; default: yours."},
    "--time": {"metavar": "TIME", "help": "Time limit of a job, such as 4:00:00; default: 3 times plan's estimate."},
    "--memory": {"metavar": "GB", "type": int, "help": "Memory of a job in GB; default: 1.5 times plan's estimate."},
    "--gpus": {
        "metavar": "[TYPE:]N",
        "help": "GPUs per model, all on one machine, with one task per GPU. Default: 1; on the CPU: 0.",
    },
    "--cpus": {"metavar": "N", "type": int, "default": 8, "help": "CPU cores per task. Default: 8."},
    "--sbatch": {
        "metavar": "NAME=VALUE",
        "action": "append",
        "default": [],
        "help": "A further option of sbatch, such as qos=long; may be given several times.",
    },
    "--rows": {"metavar": "N", "help": "Number of stimuli, if the dataset is not on this machine, as for plan."},
    "--card_memory": {"metavar": "GB", "help": "GPU memory in GB, as for plan; default: 48 (an A40)."},
}
