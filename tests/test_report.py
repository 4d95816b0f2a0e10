"""The report: one page that fetches nothing, shows text as text, and gives the figures of the run."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from safetensors.torch import save_file
from torch import Generator, randn, tensor
from torch.nn.functional import normalize

from generation.errors import EmbeddingError
from generation.recipe import parse_recipe
from generation.report import page, write_report
from generation.report.gap import effective_rank, neighbours_kept, recall
from generation.stages import CAPTION_SCHEMA, CAPTIONS, INSTRUCTIONS, TEXT_EMBEDDINGS
from generation.store import Run, parquet
from generation.vectors import VectorShard
from tests.runs import make_run

BROWSER = shutil.which("chromium")
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> `{{x}}` | $& "
    "[x](javascript:document.title='taken')"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("report") / "run", shards=2, rows=30, judged=True)


def facts_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text().split('id="facts">')[1].split("</script>")[0]))


def test_the_page_has_the_figures_of_the_run_and_is_the_same_again(run: Run, tmp_path: Path) -> None:
    for task, requests in (("multiple_choice", 1), ("question_answering", 3)):  # a pool of both ran for an hour
        run.log_session(INSTRUCTIONS[task], {"seconds": 3600.0, "requests": requests, "rows": 36})
    path = write_report(run, usd_per_million=(1.0, 2.0))
    facts = facts_of(path)
    assert [stage["hours"] for stage in facts["stages"] if stage["hours"]] == [0.25, 0.75]
    assert sum(stage["usd"] for stage in facts["stages"]) > 0
    steps = {step["step"]: step["rows"] for step in facts["funnel"]}
    assert steps["captions"] == 60 and steps["text_embeddings"] == 60
    assert len(facts["rows"]) == 60 and len({row["id"] for row in facts["rows"]}) == 60
    assert {row["reason"] for row in facts["rejected"]} == {"too_short"}
    assert write_report(run, tmp_path, usd_per_million=(1.0, 2.0)).read_bytes() == path.read_bytes()
    text = path.read_text()
    assert not re.search(r"""(src|href)=["']?https?:""", text) and "default-src 'none'" in text
    assert page({"name": HOSTILE}).count("</script>") == 2  # facts cannot end their script


def test_an_unfinished_run_gives_a_page_that_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    for stage in ("instructions", "text_embeddings", "image_embeddings", "judgements"):
        shutil.rmtree(tmp_path / "run" / stage)
    opened = Run(tmp_path / "run")
    opened.reopen(CAPTIONS, 1)
    facts = facts_of(write_report(opened))
    assert next(step for step in facts["funnel"] if step["step"] == "captions")["due_shards"] == 1
    assert facts["cloud"] == [] and "no text embeddings yet" in facts["gap"]["note"]
    empty = Run(tmp_path / "empty", parse_recipe({"name": "new", "directory": "."}, "recipe"), create=True)
    assert facts_of(write_report(empty))["rows"] == []


def test_the_gap_is_measured_with_images_and_pairs_of_ones_own(run: Run, tmp_path: Path) -> None:
    shard = VectorShard(run.file(TEXT_EMBEDDINGS, 0))
    text = shard.vectors.float()
    image = normalize(text + 2 * normalize(randn(1, text.shape[1]), dim=1) + 0.1 * randn(text.shape), dim=1)
    paths = tmp_path / "text.safetensors", tmp_path / "image.safetensors"
    for path, rows in zip(paths, (text, image), strict=True):
        save_file({"embeddings": rows}, path)
    gap = facts_of(write_report(run, tmp_path, images=paths[1], pairs=paths))["gap"]
    figures = {row["figure"]: row for row in gap["rows"]}
    cosine, untreated = figures["paired cosine"], figures["paired cosine, images not treated"]
    assert cosine["before"] == pytest.approx(float((text * image).sum(1).mean()), abs=1e-3)
    assert cosine["after"] > cosine["before"] and untreated["after"] < cosine["after"]
    save_file({"embeddings": image[:, :8].contiguous()}, paths[1])
    with pytest.raises(EmbeddingError, match="holds vectors of d = 8; the run's vectors have d = 16"):
        write_report(run, tmp_path, pairs=paths)


def test_measures_have_their_known_values() -> None:
    rows = randn(400, 8, generator=Generator().manual_seed(0))
    flat = rows * tensor([1, 1, 0, 0, 0, 0, 0, 0])
    assert effective_rank(rows) == pytest.approx(8, rel=0.1) and effective_rank(flat) == pytest.approx(2, rel=0.1)
    assert neighbours_kept(rows, rows) == 1 and neighbours_kept(rows, rows.flip(0)) < 0.2
    assert recall(rows, rows) == 1 and recall(rows, -rows) < 0.1


@pytest.mark.skipif(BROWSER is None, reason="needs chromium (apt-get install -y chromium)")
def test_hostile_text_is_shown_as_text_in_a_browser(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    opened = Run(tmp_path / "run")
    table = opened.table(CAPTIONS, 0).to_pylist()
    for row in table:
        row["caption"] = row["seed"] = row["source"] = HOSTILE
    changed = pa.Table.from_pylist(table, CAPTION_SCHEMA)
    opened.commit(CAPTIONS, 0, len(changed), parquet(changed), opened.rejected(CAPTIONS, 0))
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom")
    page = [str(BROWSER), *options, write_report(opened).as_uri()]
    shown = subprocess.run(page, capture_output=True, text=True, timeout=120).stdout
    assert "<title>test: " in shown and "taken</title>" not in shown
    assert "onerror=&quot;" not in shown.split("</script>")[-1] or "&lt;img src=x" in shown
    assert "&lt;/script&gt;&lt;script&gt;document.title='taken'" in shown
    assert shown.count("<article>") >= 4  # three samples and the browser
