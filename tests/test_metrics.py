"""The measurements, as `evaluate` loads them from their folders, against references in plain Python and float64."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from generation import checks
from generation.diagnostics.cosines import paired_cosines
from generation.diagnostics.pairs import paired_gap
from generation.metrics.caption_diversity.caption_diversity import compare, measure
from generation.metrics.embedding_gap import embedding_gap
from generation.metrics.instruction_quality import instruction_quality
from tests.conftest import CAPTIONS, ROOT

LOADS = """
import json, sys, evaluate
diversity, quality, gap = (
    evaluate.load(f"./generation/metrics/{name}", cache_dir=sys.argv[1])
    for name in ("caption_diversity", "instruction_quality", "embedding_gap"))
texts = open("generation/seed_data/captions.txt", encoding="utf-8").read().splitlines()
print(json.dumps([
    diversity.compute(data=texts, sample=50),
    quality.compute(letter=["A", ""], kind=["what", "why"], leak=[True, False], groundedness=[1.0, 0.5],
                    longest_right=[0.5, 0.0]),
    gap.compute(texts=[[1.0, 0.0]], images=[[0.0, 2.0]]),
    gap.compute(texts=sys.argv[2:3], images=sys.argv[3:4], transferred=sys.argv[3:4]),
]))
"""
words = st.lists(st.lists(st.sampled_from(["cat", "dog", "red", "a", "bus"]), min_size=1, max_size=30), min_size=1)


def test_evaluate_loads_every_folder_offline_and_by_itself(tmp_path: Path) -> None:
    """In a process whose path does not hold this project, so that a measurement that needs it would fail."""
    rows = np.random.default_rng(0).normal(size=(2, 5000, 8)).astype(np.float16)
    paths = [tmp_path / f"{name}.safetensors" for name in ("texts", "images")]
    for path, vectors in zip(paths, rows, strict=True):
        save_file({"embeddings": vectors}, path)
    script = tmp_path / "loads.py"
    script.write_text(LOADS, encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, str(script), str(tmp_path / "cache"), *map(str, paths)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | offline
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    diversity, quality, of_lists, of_files = json.loads(done.stdout)
    texts = CAPTIONS.read_text(encoding="utf-8").splitlines()
    assert diversity == pytest.approx(measure(texts) | compare(texts, 50))
    assert quality["letters"] == {"A": 1, "B": 0, "C": 0, "D": 0}
    assert of_lists == {"pairs": 1, "gap": math.sqrt(5), "cosine": 0.0, "rho": 1.0, "gap_cosine": pytest.approx(1.0)}
    assert of_files["cosine"] == pytest.approx(reference(*rows.astype(np.float64))["cosine"])
    assert of_files["gap_after"] == 0.0


@given(words)
def test_figures_of_captions_agree_with_a_reference(captions: list[list[str]]) -> None:
    made = measure(" ".join(words) for words in captions)
    ratios = [len(set(words)) / len(words) for words in captions]
    entropies = [-sum(p * math.log2(p) for w in set(c) for p in [c.count(w) / len(c)]) for c in captions]
    assert made["captions"] == len(captions)
    assert made["mean_words"] == pytest.approx(sum(map(len, captions)) / len(captions))
    assert made["type_token_ratio"] == pytest.approx(sum(ratios) / len(ratios))
    assert made["entropy_bits"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-9)
    lengths = sorted(map(len, captions))
    for percent in (5, 25, 50, 75, 95):
        assert made[f"words_p{percent:02d}"] == np.percentile(lengths, percent, method="inverted_cdf")


def bleu(tokens: list[str], others: list[list[str]]) -> float:
    """BLEU-4 as its paper defines it, one n-gram and one reference at a time."""

    def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]

    logs = 0.0
    for n in (1, 2, 3, 4):
        own = grams(tokens, n)
        clipped = sum(min(own.count(g), max(grams(other, n).count(g) for other in others)) for g in set(own))
        if n == 1 and not clipped:
            return 0.0
        logs += math.log((clipped or 0.1) / max(1, len(own))) / 4
    nearest = min((abs(len(other) - len(tokens)), len(other)) for other in others)[1]
    return (1.0 if len(tokens) > nearest else math.exp(1 - nearest / len(tokens))) * math.exp(logs)


@given(words.filter(lambda captions: len(captions) > 1))
def test_captions_against_each_other_agree_with_a_reference(captions: list[list[str]]) -> None:
    made = compare([" ".join(words) for words in captions])
    scores = [bleu(own, captions[:place] + captions[place + 1 :]) for place, own in enumerate(captions)]
    assert made["self_bleu"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    for n in (1, 2, 3):
        grams = [tuple(c[place : place + n]) for c in captions for place in range(len(c) - n + 1)]
        assert made[f"distinct_{n}"] == pytest.approx(len(set(grams)) / max(1, len(grams)))


def test_a_sample_is_seeded_and_no_larger_than_asked() -> None:
    texts = CAPTIONS.read_text(encoding="utf-8").splitlines()
    assert compare(texts, 40, seed=1) == compare(texts, 40, seed=1) != compare(texts, 40, seed=2)
    assert compare(texts, 40)["sampled"] == 40
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        compare(texts, 0)


def test_no_captions_give_zeros() -> None:
    assert set((measure([]) | compare([])).values()) == {0}
    assert compare(["", "..."])["self_bleu"] == 0


# -- instruction quality -----------------------------------------------------------------------------------------

CAPTION = "A red kite flies over a quiet beach while two children hold its string and a dog runs behind them."
OPTIONS = {"A": "a very long red kite", "B": "a boat", "C": "a gull", "D": "a drone"}
ITEMS = [
    {"Question": "What flies over the beach?", "Options": OPTIONS, "Answer": "A"},
    {"Question": "How many children hold the string?", "Answer": "Two children hold it"},
    {"Question": "What does the caption mention?", "Answer": "A submarine under purple ice"},
]


def columns(items: list[checks.Item]) -> dict[str, list[object]]:
    facts = [asdict(checks.item_facts(item, checks.read_source(CAPTION))) for item in items]
    return {name: [fact[name] for fact in facts] for name in facts[0]}


def test_the_facts_of_items_are_those_of_the_checks() -> None:
    facts = columns(ITEMS)
    assert facts["letter"] == ["A", "", ""]
    assert facts["kind"] == ["what", "how many", "what"]
    assert facts["leak"] == [False, False, True]
    assert facts["longest_right"] == [1.0, 0.0, 0.0]
    assert facts["groundedness"][1] == 1.0
    assert facts["groundedness"][2] == 0.0
    made = instruction_quality.measure(**facts)  # type: ignore[arg-type]
    known = checks.answer_statistics(ITEMS)
    assert made["letters"] == known.letters
    assert made["letters_p"] == pytest.approx(known.letters_p, abs=1e-12)
    assert made["kinds"] == known.question_kinds
    assert made["longest_right"] == known.longest_right
    assert made["leak_rate"] == pytest.approx(1 / 3)


@given(st.lists(st.sampled_from(["A", "B", "C", "D", ""]), max_size=60), st.data())
def test_figures_of_instructions_agree_with_a_reference(letters: list[str], data: st.DataObject) -> None:
    count = len(letters)
    grounded = data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    leak = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    made = instruction_quality.measure(letters, ["what"] * count, leak, grounded, [0.0] * count)
    counts = [Counter(letters)[name] for name in "ABCD"]
    assert made["letters_p"] == pytest.approx(checks.chi_square_p(counts), rel=1e-9, abs=1e-12)
    assert made["leak_rate"] == pytest.approx(sum(leak) / max(1, count))
    if count:
        assert made["groundedness_mean"] == pytest.approx(np.mean(grounded))
        assert made["groundedness_p05"] == np.percentile(grounded, 5, method="inverted_cdf")


def test_wrong_facts_are_refused_by_row() -> None:
    with pytest.raises(ValueError, match="letter of row 1: 'E'"):
        instruction_quality.measure(["A", "E"], ["", ""], [False] * 2, [1.0] * 2, [0.0] * 2)
    with pytest.raises(ValueError, match="groundedness of row 0: nan"):
        instruction_quality.measure(["A"], [""], [False], [math.nan], [0.0])


# -- embedding gap -----------------------------------------------------------------------------------------------


def reference(texts: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """The figures of whole matrices in float64."""
    deltas = images - texts
    mean = deltas.mean(0)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]))

    return {
        "gap": math.dist(images.mean(0), texts.mean(0)),
        "cosine": cosine(texts, images),
        "rho": float(mean @ mean / np.mean([delta @ delta for delta in deltas])),
        "gap_cosine": cosine(deltas, np.broadcast_to(mean, deltas.shape)),
    }


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Float16 [300, 6] rows that lie apart, read in chunks of 64."""
    monkeypatch.setattr(embedding_gap, "CHUNK_ROWS", 64)
    draws = np.random.default_rng(3)
    texts = draws.normal(size=(300, 6)) + 1
    return texts.astype(np.float16), (texts + draws.normal(size=6) + draws.normal(size=(300, 6)) / 2).astype(
        np.float16
    )


def test_the_gap_agrees_with_a_reference_and_with_diagnose_from_lists_and_files(
    pairs: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    texts, images = (rows.astype(np.float64) for rows in pairs)
    moved = texts + (images - texts).mean(0)
    made = embedding_gap.measure(texts.tolist(), images.tolist(), moved.tolist())
    wanted = reference(texts, images)
    after = {f"{name}_after": value for name, value in reference(moved, images).items() if name in ("cosine",)}
    assert {name: made[name] for name in wanted | after} == pytest.approx(wanted | after, rel=1e-12)
    assert made["gap_after"] == pytest.approx(0, abs=1e-12)
    u, v = torch.from_numpy(texts), torch.from_numpy(images)
    known = paired_gap(u, v)
    assert [made["gap"], made["rho"], made["gap_cosine"], made["cosine"]] == pytest.approx(
        [known.norm, known.shared, known.cosine, float(paired_cosines(u, v).mean())], rel=1e-12
    )
    paths: dict[str, list[Path]] = {"texts": [], "images": []}
    for number, part in enumerate((slice(0, 130), slice(130, 300))):
        for name, rows in zip(paths, pairs, strict=True):
            paths[name].append(tmp_path / f"{name}{number}.safetensors")
            save_file({"embeddings": rows[part]}, paths[name][-1])
    of_files = embedding_gap.measure(paths["texts"], paths["images"])
    assert of_files == pytest.approx({name: made[name] for name in of_files}, rel=1e-12)


def test_wrong_pairs_are_refused_by_name(tmp_path: Path) -> None:
    one = [[1.0, 0.0]]
    path = tmp_path / "other.safetensors"
    save_file({"weights": np.ones((1, 2), np.float32)}, path)
    for arguments, named in {
        (((1.0, 0.0),), ((1.0, 0.0, 0.0),)): r"texts has shape \(1, 2\), but images \(1, 3\)",
        (((1.0, 0.0),), ((0.0, 0.0),)): "images, row 0: the vector is zero",
        (((math.nan, 0.0),), ((1.0, 0.0),)): "texts, row 0",
        ((str(path),), (str(path),)): "other.safetensors is no .safetensors file with a tensor 'embeddings'",
        ((str(tmp_path / "none"),), (str(path),)): "none is no .safetensors file",
        ((str(path),), (str(path), str(path))): "texts: ",
    }.items():
        with pytest.raises(ValueError, match=named):
            embedding_gap.measure(*arguments)
    with pytest.raises(ValueError, match="give transferred, too"):
        embedding_gap.measure(one, one, treated=one)
    with pytest.raises(ValueError, match="no row"):
        embedding_gap.measure([], [])
    assert math.isnan(embedding_gap.measure(one, one)["rho"])
