"""tools/install_torch.py takes the CPU build of torch where there is no GPU, or says what the default costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "install_torch.py"
CUDA = ["numpy", "nvidia-cublas==13.1; platform_system == 'Linux'"]
CPU = ["numpy", "opt-einsum; extra == 'opt-einsum'"]


def run_script(tmp_path: Path, requires: list[str], index_answers: bool, gpu: bool = False) -> tuple[str, list[str]]:
    """Run the script on an interpreter without torch, with a recorded pip; return its output and pip's commands."""
    pip = tmp_path / "site" / "pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").touch()
    report = json.dumps({"install": [{"metadata": {"requires_dist": requires}}]})
    (pip / "__main__.py").write_text(
        "import sys\n"
        f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        f"print({report!r}) if '--dry-run' in sys.argv else sys.exit({int(not index_answers)})\n"
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    if gpu:
        (tools / "nvidia-smi").write_text("#!/bin/sh\n")
        (tools / "nvidia-smi").chmod(0o755)
    environment = {"PATH": str(tools), "PYTHONPATH": str(tmp_path / "site"), "TORCH_CPU_INDEX": "http://127.0.0.1:1/"}
    python = os.path.realpath(sys.executable)  # the base interpreter, not that of the environment with torch
    done = subprocess.run([python, "-S", str(SCRIPT)], env=environment, capture_output=True, text=True, check=True)
    calls = tmp_path / "calls"
    return done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_the_cpu_build_is_taken_for_torch_alone(tmp_path: Path) -> None:
    said, calls = run_script(tmp_path, CUDA, index_answers=True)
    assert len(calls) == 2 and "--index-url http://127.0.0.1:1/ torch==" in calls[1] and "CPU build" in said


def test_an_index_that_does_not_answer_costs_one_short_try_and_a_line(tmp_path: Path) -> None:
    said, calls = run_script(tmp_path, CUDA, index_answers=False)
    assert len(calls) == 2 and "--timeout 5 --retries 0" in calls[1] and "3.4 GB of CUDA libraries" in said


@pytest.mark.parametrize(("requires", "gpu", "asked"), [(CPU, False, 1), (CUDA, True, 0)])
def test_a_machine_with_a_cpu_wheel_or_a_gpu_is_asked_nothing(
    tmp_path: Path, requires: list[str], gpu: bool, asked: int
) -> None:
    said, calls = run_script(tmp_path, requires, index_answers=False, gpu=gpu)
    assert said == "" and len(calls) == asked
