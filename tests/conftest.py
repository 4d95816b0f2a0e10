"""What many tests share: commands as child processes, and recipes in files."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
_THINGS = ("kite", "boat", "chair")
SEEDS = [f"A {c} {t} in a {p}." for c in ("red", "blue") for t in _THINGS for p in ("park", "yard", "hall")]  # 18


def command(*arguments: object, timeout_s: float = 280, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` in the clone's root to its end."""
    line, env = [sys.executable, *map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)


def generation(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m generation ARGUMENTS``."""
    return command("-m", "generation", *arguments, **environment)


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write a small recipe with 18 seeds of its own in three shards, prompts for small models, and ``sections``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seeds.txt").write_text("".join(f"{seed}\n" for seed in SEEDS), encoding="utf-8")
    tasks = ("multiple_choice", "question_answering", "complex_reasoning")
    recipe: dict[str, Any] = {
        "name": "small",
        "seeds": {"shard_rows": 6, "captions": [{"name": "own", "path": "seeds.txt", "license": "MIT"}]},
        "captions": {"prompt": "expand_caption"},
        "instructions": {task: {"prompt": task, "fraction": 0.5, "items": [2, 3]} for task in tasks},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections), encoding="utf-8")
    return path
