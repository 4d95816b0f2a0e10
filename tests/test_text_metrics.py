"""The measurements of text, as `evaluate` loads them from their folders, against references in plain Python."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.metrics.caption_diversity import caption_diversity
from generation.metrics.instruction_quality import instruction_quality

ROOT = Path(__file__).parent.parent
LOADS = """
import json, sys, evaluate
diversity, quality = (
    evaluate.load(f"./generation/metrics/{name}", cache_dir=sys.argv[1])
    for name in ("caption_diversity", "instruction_quality"))
quality.add_batch(question=["Who?\\nA: he\\nB: she"], answer=["A"], question_type=["person"], grounded=[1.0])
print(json.dumps([diversity.compute(data=["a red bus", "a bus"]), quality.compute()]))
"""
texts = st.lists(st.lists(st.sampled_from(["cat", "dog", "red", "a", "bus"]), min_size=1, max_size=20), min_size=2)


def test_evaluate_loads_every_folder_offline_and_without_this_project(tmp_path: Path) -> None:
    (tmp_path / "loads.py").write_text(LOADS, encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | offline
    command = [sys.executable, str(tmp_path / "loads.py"), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    diversity, quality = json.loads(done.stdout)
    assert (diversity["mean_words"], quality["letters"]) == (2.5, {"A": 1, "B": 0, "C": 0, "D": 0})


@settings(max_examples=40, deadline=None)
@given(texts)
def test_figures_of_captions_agree_with_a_reference(captions: list[list[str]]) -> None:
    joined = [" ".join(words) for words in captions]
    made = caption_diversity.measure(joined)
    lengths = sorted(map(len, captions))
    shares = [[words.count(word) / len(words) for word in set(words)] for words in captions]
    means = {"mean_words": lengths, "type_token_ratio": [len(set(words)) / len(words) for words in captions]}
    means |= {"entropy_bits": [-sum(p * math.log2(p) for p in own) for own in shares]}
    for name, values in means.items():
        assert made[name] == pytest.approx(np.mean(values), abs=1e-9)
    for percent in (5, 25, 50, 75, 95):
        assert made[f"words_p{percent:02d}"] == np.percentile(lengths, percent, method="inverted_cdf")
    for n in (1, 2, 3):
        found = [tuple(words[place : place + n]) for words in captions for place in range(len(words) - n + 1)]
        assert made[f"distinct_{n}"] == pytest.approx(len(set(found)) / max(1, len(found)))


def test_samples_are_seeded_and_empty_sets_give_zeros() -> None:
    many = [f"a {number} cat" for number in range(50)]
    assert caption_diversity.measure(many, 10, seed=1) == caption_diversity.measure(many, 10, seed=1)
    assert caption_diversity.measure(many, 10)["sampled"] == 10
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        caption_diversity.measure(many, 0)
    assert set(caption_diversity.measure([]).values()) == {0}
    assert instruction_quality.measure([], [], [], [])["letters_p"] == 1.0


def test_leaks_are_counted_and_impossible_values_are_refused_with_their_row() -> None:
    asked, said = ["What is it?", "What does the passage say?", "Is it red?"], ["A dog.", "Yes.", "Not mentioned."]
    made = instruction_quality.measure(asked, said, ["object"] * 3, [0.2, 0.4, 1.0])
    assert (made["leak_rate"], made["grounded_p05"]) == (pytest.approx(2 / 3), 0.2)
    with pytest.raises(ValueError, match="row 1"):
        instruction_quality.measure(asked[:2], ["", ""], ["", ""], [0.5, 1.5])
    with pytest.raises(ValueError, match="'E' is not one of A"):
        instruction_quality.measure(["Who?\nA: he"], ["E"], ["person"], [0.5])
