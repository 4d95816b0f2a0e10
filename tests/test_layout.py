"""The shape of the code: one direction of imports, unique names, small files and functions, few recipe keys."""

import ast
import subprocess
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from pydantic import BaseModel

from generation.config import Recipe
from tests.conftest import command

ROOT = Path(__file__).parent.parent
# A module may import modules of the lines above its own, and of its own package.
ORDER = """
errors limits stages config files recipe logs cli store checks vectors prompts encoders tgi dedup transfer
seeds engine captions instructions judge embed pipeline cluster estimate verify original report builders export loader
show metrics __main__
"""
PRODUCT = ("generation", "dataset_card", "tools", "unicorn_1_2m.py", "unicorn_471k_instruction.py")
FILES = "git ls-files --cached --others --exclude-standard"  # also those that are not added yet
CEILINGS = {"product": 8_500, "tests": 8_000, "benchmarks": 2_800, "README.md": 250}


def tracked() -> list[Path]:
    listed = subprocess.run(FILES.split(), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.splitlines() if (path := ROOT / name).exists()]


def sources(*tops: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in tops]


def imported(path: Path) -> set[str]:
    """Return the parts of ``generation`` that a module imports, its own package left out."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package, found = parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {target[1]} if len(target) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "generation":
            names = (node.module or "").split(".")
            found |= {names[1]} if len(names) > 1 else {alias.name for alias in node.names}
    return found - {"__version__", parts[1]}


def test_imports_point_one_way() -> None:
    place = {name: number for number, name in enumerate(ORDER.split())}
    wrong = []
    for path in sources("generation"):
        own = path.relative_to(ROOT / "generation").with_suffix("").parts[0]
        if own == "__init__":
            continue
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in imported(path) if place[name] >= place[own]]
    assert not wrong


def test_names_are_used_once() -> None:
    modules = Counter(path.name for path in sources("generation") if path.stem not in ("__init__", "__main__"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources("generation")]
    classes = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert [name for name, count in (modules | classes).items() if count > 1] == []


def functions(path: Path) -> list[tuple[str, int]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


def test_files_and_functions_are_small() -> None:
    product = sources(*PRODUCT)
    long = [
        f"{path.relative_to(ROOT)}: {lines(path)}" for path in product + sources("benchmarks") if lines(path) > 300
    ]
    long += [f"{path.relative_to(ROOT)}: {lines(path)}" for path in sources("tests") if lines(path) > 500]
    sizes = [size for path in product for size in functions(path)]
    long += [f"{name}: {size}" for name, size in sizes if size > 60]
    assert not long
    assert 9 <= median(size for _, size in sizes) <= 15


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize("part", CEILINGS)
def test_the_code_stays_below_its_ceilings(part: str) -> None:
    paths = {"product": sources(*PRODUCT), "README.md": [ROOT / "README.md"]}.get(part) or sources(part)
    assert sum(map(lines, paths)) <= CEILINGS[part]


def test_a_seed_passes_at_most_18_files() -> None:
    output = command("-m", "benchmarks.seed_path").stdout
    assert output.splitlines()[-1] == '{"files_passed": 18, "files_to_second_asking": 4}', output


def test_a_recipe_has_at_most_60_keys() -> None:
    keys: set[tuple[str, str]] = set()

    def sections(annotation: object) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [section for part in getattr(annotation, "__args__", ()) for section in sections(part)]

    def visit(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            inner = sections(field.annotation)
            for below in inner:
                visit(below)
            if not inner:  # a key of a base class counts once
                owner = [base for base in section.__mro__ if name in getattr(base, "__annotations__", {})][-1]
                keys.add((owner.__name__ if name != "method" else "Transfer", name))

    visit(Recipe)
    assert len(keys - {("Recipe", "directory")}) <= 60
