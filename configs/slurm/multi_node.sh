#!/bin/bash
# One model on all GPUs of several machines; options after the script's name are those of predict.
#
#   sbatch configs/slurm/multi_node.sh --config configs/nsd/vision.yaml --config configs/trainer/multi_gpu.yaml \
#       --model.name vit_giant_patch14_dinov2.lvd142m
#
# Each GPU computes its share of the shards. --ntasks-per-node is the number of GPUs per machine, as in --gres. All
# machines must share the output folder, which the run checks. 90 seconds before the time is up, SLURM sends USR1; the
# run then finishes its batch and is queued again.

#SBATCH --job-name=lit-extract
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue

set -euo pipefail
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
exec srun lit-extract predict "$@" --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
