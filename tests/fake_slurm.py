"""A Slurm of one machine: ``sbatch``, ``srun`` and ``scontrol`` as programs on a PATH.

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
    for name in ("sbatch", "srun", "scontrol"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {folder} "$@"\n')
        (programs / name).chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


def submitted(folder: Path) -> list[dict[str, Any]]:
    """Return all jobs in the order of their submission: ``job``, ``script``, ``arguments``, ``options`` by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def sbatch(folder: Path, arguments: list[str]) -> None:
    """Store a job, and run it if that is wanted."""
    *arguments, path = arguments
    script, job = Path(path).read_text(), FIRST_JOB + len(submitted(folder))
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    options = dict(option.removeprefix("--").partition("=")[::2] for option in (*lines, *arguments))
    record = {"job": job, "script": script, "arguments": arguments, "options": options}
    (folder / f"{job}.json").write_text(json.dumps(record))  # before it runs, so that the next has another number
    if os.environ.get("FAKE_SLURM_RUN"):
        (folder / f"{job}.json").write_text(json.dumps(record | {"failed": run_tasks(folder, record, path)}))
    print(f"Submitted batch job {job}")


def run_tasks(folder: Path, record: dict[str, Any], path: str) -> bool:
    """Run all tasks of a job; return whether one failed."""
    options = record["options"]
    waits_for = re.findall(r"afterok:(\d+)", options.get("dependency", ""))
    if any(json.loads((folder / f"{job}.json").read_text())["failed"] for job in waits_for):
        return True
    first, last = re.findall(r"\d+", options["array"])[:2]
    exported, failed = dict(re.findall(r"(\w+)=(\w+)", options.get("export", ""))), False
    for task in range(int(first), int(last) + 1):
        environment = {**os.environ, **exported, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "node1"}
        output = options["output"].replace("%A", str(record["job"])).replace("%a", str(task))
        with open(output, "wb") as log:
            done = subprocess.run(["bash", path], env=environment, stdout=log, stderr=log, check=False)
        failed = failed or done.returncode != 0
    return failed


def main(program: str, folder: str, *arguments: str) -> int:
    """Run one of the programs."""
    if program == "sbatch":
        sbatch(Path(folder), list(arguments))
        return 0
    if program == "scontrol":
        print(arguments[-1])
        return 0
    command = [*arguments]
    while command[0].startswith("-"):  # srun's own options; the value of -n stands apart
        del command[: 2 if command[0] == "-n" else 1]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
