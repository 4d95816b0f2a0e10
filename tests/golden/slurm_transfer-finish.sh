#!/bin/bash
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=8G
#SBATCH --nodes=1
#SBATCH --partition=cpu
#SBATCH --job-name=unicorn-transfer-finish
#SBATCH --time=12:00:00
#SBATCH --output=RUN/tasks/transfer/00000/finish/slurm_logs/%A_%a.out
#SBATCH --error=RUN/tasks/transfer/00000/finish/slurm_logs/%A_%a.out
#SBATCH --array=0-0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --qos=long
echo "Starting data processing job unicorn-transfer-finish"
module load python; export PATH=VENV/bin:$PATH; export PYTHONPATH=ROOT
set -xe
export PYTHONUNBUFFERED=TRUE
srun --cpus-per-task=2 -l -n 1 launch_pickled_pipeline RUN/tasks/transfer/00000/finish/executor.pik
