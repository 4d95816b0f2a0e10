"""The measurements, as `evaluate` loads them from their folder, against references in plain Python."""

import math
from pathlib import Path

import evaluate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.metrics.caption_diversity.caption_diversity import measure
from tests.conftest import CAPTIONS, ROOT


def test_evaluate_loads_the_folder_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    diversity = evaluate.load(str(ROOT / "generation/metrics/caption_diversity"), cache_dir=str(tmp_path))
    texts = CAPTIONS.read_text(encoding="utf-8").splitlines()
    assert diversity.compute(data=texts) == pytest.approx(measure(texts))


@given(st.lists(st.lists(st.sampled_from(["cat", "dog", "red", "a", "bus"]), min_size=1, max_size=30), min_size=1))
def test_figures_agree_with_a_reference(captions: list[list[str]]) -> None:
    made = measure(" ".join(words) for words in captions)
    ratios = [len(set(words)) / len(words) for words in captions]
    entropies = [-sum(p * math.log2(p) for w in set(c) for p in [c.count(w) / len(c)]) for c in captions]
    assert made["captions"] == len(captions)
    assert made["mean_words"] == pytest.approx(sum(map(len, captions)) / len(captions))
    assert made["type_token_ratio"] == pytest.approx(sum(ratios) / len(ratios))
    assert made["entropy_bits"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-9)


def test_no_captions_give_zeros() -> None:
    assert set(measure([]).values()) == {0}
