#!/bin/bash
# One GPU per model: each task of the array runs one line of the output of `lit-extract sweep --dry_run`.
#
#   lit-extract sweep --config configs/nsd/vision.yaml --config configs/trainer/a40.yaml --dry_run > commands.txt
#   sbatch --array=1-$(wc -l < commands.txt)%8 configs/slurm/array.sh commands.txt
#
# %8: at most eight at a time. Submit the script again for models that failed: finished models end within seconds.
# 90 seconds before the time is up, SLURM sends USR1; the run then finishes its batch and is queued again.

#SBATCH --job-name=lit-extract
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue

set -euo pipefail
commands=${1:?give the file with the commands: sbatch --array=1-N configs/slurm/array.sh commands.txt}
command=$(sed -n "${SLURM_ARRAY_TASK_ID:?submit it as an array}p" "$commands")
if [ -z "$command" ]; then
    echo "$commands has no line $SLURM_ARRAY_TASK_ID" >&2
    exit 2
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
echo "$command"
eval "exec srun $command" # srun: the signal goes to what it runs, not to this script
