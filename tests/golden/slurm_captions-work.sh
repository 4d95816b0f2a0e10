#!/bin/bash
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=8G
#SBATCH --nodes=1
#SBATCH --partition=cpu
#SBATCH --job-name=unicorn-captions-work
#SBATCH --time=12:00:00
#SBATCH --output=RUN/tasks/captions/00000/work/slurm_logs/%A_%a.out
#SBATCH --error=RUN/tasks/captions/00000/work/slurm_logs/%A_%a.out
#SBATCH --array=0-7%4
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --requeue
#SBATCH --qos=long
echo "Starting data processing job unicorn-captions-work"
module load python; export PATH=VENV/bin:$PATH; export PYTHONPATH=ROOT
set -xe
export PYTHONUNBUFFERED=TRUE
srun --cpus-per-task=2 -l -n 1 launch_pickled_pipeline RUN/tasks/captions/00000/work/executor.pik
