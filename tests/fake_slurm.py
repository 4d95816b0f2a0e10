"""A Slurm of one machine: ``sbatch`` and ``srun`` as programs on a PATH.

``sbatch`` stores each script and its options as ``<folder>/<job>.json`` and prints a job number like the real one.
With ``FAKE_SLURM_RUN`` set it also runs the job's tasks before it returns, unless an ``afterok`` dependency failed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FIRST_JOB = 1001


def install(folder: Path) -> str:
    """Put the programs into ``<folder>/bin``; return the PATH that finds them."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (programs / "sbatch").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{folder}" "$@"\n')
    (programs / "srun").write_text('#!/bin/sh\nshift\nexec "$@"\n')  # one option of its own
    for program in programs.iterdir():
        program.chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


def submitted(folder: Path) -> list[dict[str, Any]]:
    """Return all jobs in the order of their submission: ``job``, ``script``, ``options`` by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def main(folder: Path, path: Path) -> None:
    """Be ``sbatch``: store a job, and run its tasks if that is wanted; it has failed if one of them does."""
    script, job = path.read_text(), FIRST_JOB + len(submitted(folder))
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in script.splitlines() if "#SBATCH " in line]
    options = {name: value.strip('"') for name, _, value in pairs}
    before = re.findall(r"afterok:(\d+)", options.get("dependency", ""))
    failed = any(json.loads((folder / f"{one}.json").read_text())["failed"] for one in before)
    first, last, _ = map(int, re.findall(r"\d+", options["array"]))
    for task in range(first, last + 1) if os.environ.get("FAKE_SLURM_RUN") and not failed else ():
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
        with open(options["output"].replace("%5a", f"{task:05d}"), "ab") as log:
            done = subprocess.run(["bash", "-c", script], env=environment, stdout=log, stderr=log, check=False)
        failed |= done.returncode != 0
    stored = {"job": job, "script": script, "options": options, "failed": failed}
    (folder / f"{job}.json").write_text(json.dumps(stored))
    print(f"Submitted batch job {job}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
