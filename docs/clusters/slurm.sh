#!/bin/bash
# Falcon2-11B on four nodes of eight GPUs, each node a replica. From the checkout, with the environment active:
#
#   sbatch docs/clusters/slurm.sh --loss nca --data pairs.jsonl --output /shared/runs/falcon-11b
#
#SBATCH --job-name=align
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# --resume starts afresh where --output is empty, and goes on where the job was requeued
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    train.py --config falcon-11b --parallel.replicate "$SLURM_NNODES" --resume "$@"
