"""A Slurm of one machine: `sbatch`, `srun` and `scontrol`, as programs on a PATH.

`sbatch` keeps each script and its arguments as `<folder>/<job>.json` and prints a job's number as the real one does.
With `FAKE_SLURM_RUN` set it also runs the job, task after task, before it returns; a job whose `afterok` dependency
has failed is not run. Made with `install`, so that tests drive datatrove's executor as it is.
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
    """Puts the programs into `<folder>/bin`; gives the PATH that finds them."""
    bin = folder / "bin"
    bin.mkdir(parents=True)
    for name in ("sbatch", "srun", "scontrol"):
        (bin / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {folder} "$@"\n')
        (bin / name).chmod(0o755)
    return f"{bin}:{os.environ['PATH']}"


def submitted(folder: Path) -> list[dict[str, Any]]:
    """All jobs in the order of their submission: `job`, `script`, `arguments`, and the `options` of both by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def _options(script: str, arguments: list[str]) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    pairs = (option.removeprefix("--").partition("=") for option in (*lines, *arguments))
    return {name: value for name, _, value in pairs}


def _sbatch(folder: Path, arguments: list[str]) -> int:
    *arguments, path = arguments
    script = Path(path).read_text()
    job = FIRST_JOB + len(submitted(folder))
    record: dict[str, Any] = {"job": job, "script": script, "arguments": arguments}
    record["options"] = _options(script, arguments)
    (folder / f"{job}.json").write_text(json.dumps(record))  # before it runs, so that the next has another number
    if os.environ.get("FAKE_SLURM_RUN"):
        (folder / f"{job}.json").write_text(json.dumps(record | {"failed": _run(folder, record, path)}))
    print(f"Submitted batch job {job}")
    return 0


def _run(folder: Path, record: dict[str, Any], path: str) -> bool:
    waits_for = re.findall(r"afterok:(\d+)", record["options"].get("dependency", ""))
    if any(json.loads((folder / f"{job}.json").read_text())["failed"] for job in waits_for):
        return True
    first, last = re.findall(r"\d+", record["options"]["array"])[:2]
    exported = dict(re.findall(r"(\w+)=(\w+)", record["options"].get("export", "")))
    failed = False
    for task in range(int(first), int(last) + 1):
        environment = {**os.environ, **exported, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "node1"}
        output = Path(record["options"]["output"].replace("%A", str(record["job"])).replace("%a", str(task)))
        with output.open("wb") as log:
            done = subprocess.run(["bash", path], env=environment, stdout=log, stderr=log, check=False)
        failed = failed or done.returncode != 0
    return failed


def main(program: str, folder: str, *arguments: str) -> int:
    """One of the programs."""
    if program == "sbatch":
        return _sbatch(Path(folder), list(arguments))
    if program == "scontrol":
        print(arguments[-1])
        return 0
    command = [*arguments]
    while command[0].startswith("-"):  # srun's own options; that of -n stands apart
        del command[: 2 if command[0] == "-n" else 1]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
