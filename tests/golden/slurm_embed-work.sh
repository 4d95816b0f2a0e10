#!/bin/bash
#SBATCH --cpus-per-task=16
#SBATCH --mem-per-cpu=8G
#SBATCH --nodes=1
#SBATCH --partition=gpu
#SBATCH --job-name=unicorn-embed-work
#SBATCH --time=12:00:00
#SBATCH --output=RUN/tasks/embed/00000/work/slurm_logs/%A_%a.out
#SBATCH --error=RUN/tasks/embed/00000/work/slurm_logs/%A_%a.out
#SBATCH --array=0-7%4
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --constraint=h100
#SBATCH --requeue
#SBATCH --qos=high
#SBATCH --gpus=8
echo "Starting data processing job unicorn-embed-work"
module load python; export PATH=VENV/bin:$PATH; export PYTHONPATH=ROOT
set -xe
export PYTHONUNBUFFERED=TRUE
srun --cpus-per-task=16 -l -n 1 launch_pickled_pipeline RUN/tasks/embed/00000/work/executor.pik
