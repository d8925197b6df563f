#!/bin/bash
# A training of several nodes that survives its time limit: submit it again, and it goes on where it was.
#SBATCH --job-name=boltzflow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

RUN=${1:?usage: sbatch slurm.sh RUN.yaml}

# 8 processes; the batch sizes of RUN.yaml must be multiples of 8. `training.shards` keeps the result the same on any
# number of processes that divides it.
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

in_all_processes() {
  srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$HEAD:29500" -m boltzflow "$@"
}

in_all_processes train "$RUN" --set training.device=cuda --set training.shards=8 --resume
in_all_processes sample "$RUN" -n 1000000 -o "${RUN%.yaml}.h5" --device cuda --seed 1 --resume
