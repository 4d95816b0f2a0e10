"""Install torch's CPU build where there is no GPU: the default build for Linux brings 3.4 GB of CUDA libraries along.

    .venv/bin/python tools/install_torch.py

Does nothing if torch is installed, if there is an NVIDIA GPU, or if pip's own index already offers a build without
CUDA. Otherwise asks torch's index of CPU builds once, for this one package. If that fails, says what the default costs
and leaves the installation to the requirements file.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
TIMEOUT_S = "5"  # for an answer of the index
REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pip of this interpreter."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def brings_cuda(torch: str) -> bool:
    """Return whether pip's default index offers a build of ``torch`` that requires CUDA libraries."""
    report = pip("install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", torch)
    if report.returncode:
        return False  # the installation that follows says what is wrong
    packages = json.loads(report.stdout)["install"]
    requires = [text for package in packages for text in package["metadata"].get("requires_dist", [])]
    return any(re.match("nvidia|cuda", text) for text in requires if "extra ==" not in text)


def main() -> None:
    """Install the CPU build, or say why not."""
    torch = re.search(r"^torch==\S+", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
    if not torch or importlib.util.find_spec("torch") or shutil.which("nvidia-smi") or not brings_cuda(torch[0]):
        return
    print("no GPU found: taking torch's CPU build from torch's own index", flush=True)
    tried = pip("install", "--quiet", "--timeout", TIMEOUT_S, "--retries", "0", "--index-url", CPU_INDEX, torch[0])
    if tried.returncode:
        costs = "which brings about 3.4 GB of CUDA libraries that this machine does not use"
        print(f"torch's CPU index did not answer: taking the default build, {costs}", flush=True)


if __name__ == "__main__":
    main()
