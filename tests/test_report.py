"""The command ``report``: what the page holds, that no text in a run can harm it, and runs that are not finished."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from generation.checks.statistics import chi_square_p
from generation.diagnostics.of_run import diagnose_run
from generation.diagnostics.report import to_json
from generation.diagnostics.vectors import in_memory
from generation.errors import RunError
from generation.metrics.caption_diversity.caption_diversity import measure
from generation.report import rows as report_rows
from generation.report import texts as report_texts
from generation.report.command import write_report
from generation.report.page import embedded_json
from generation.report.stages import FINISHED, NOT_BEGUN, UNFINISHED, stages
from generation.rundir import RunDir
from generation.transfer.rows import one_thread_an_operation
from tests.conftest import generation, manifest, rows
from tests.report_pages import HOSTILE, Page, cut, rewrite

SECTIONS = ["stages", "funnel", "lengths", "diversity", "letters", "questions", "gap", "throughput", "tokens", "rows"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with one_thread_an_operation():
        yield


@pytest.fixture(scope="module")
def written(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run's report, from the command line."""
    folder = tmp_path_factory.mktemp("report")
    prices = ("--usd-per-million", 1, 2)
    done = generation("report", finished_run, "--output", folder, *prices, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written / "report.html")


def test_every_section_is_there_with_a_heading_and_figures_that_have_words(page: Page, written: Path) -> None:
    assert list(page.sections) == SECTIONS
    assert [tag for tag, _ in page.elements if tag in ("h1", "h2")] == ["h1", *["h2"] * len(SECTIONS)]
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 12
    assert all(a["role"] == "img" and len(str(a["aria-label"])) > 20 for a in pictures)
    images = sorted(path.name for path in written.glob("*.png"))
    assert len(images) == 12
    for name in images:
        with Image.open(written / name) as image:
            assert np.asarray(image.convert("L")).std() > 5, name


def test_the_page_needs_no_other_file(page: Page) -> None:
    assert not [tag for tag, _ in page.elements if tag in ("link", "img", "iframe", "image", "object")]
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert str(attributes.get(name, "#")).startswith("#"), (tag, attributes)
    assert "url(" not in page.source.replace("url(#", "")
    assert "@import" not in page.source


def test_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_numbers_are_those_of_the_manifest(page: Page, finished_run: Path) -> None:
    known = manifest(finished_run)["stages"]
    table = page.table("funnel", "Rows")
    for stage in ("captions", "instructions/multiple_choice", "instructions/question_answering"):
        found = table[stage.split("/")[-1].replace("_", " ")]
        balance = known[stage]["balance"]
        assert [found[0], found[2], found[3]] == [str(balance[key]) for key in ("accepted", "rejected", "pending")]
    assert table["captions"][1] == "1,243,195"
    statistics = known["instructions/multiple_choice"]["statistics"]
    letters = page.table("letters")
    assert [int(letters[f"{letter} is right"][0].split()[0]) for letter in "ABCD"] == list(
        statistics["letters"].values()
    )
    square, p = (float(letters[key][0]) for key in ("chi-square, 3 degrees of freedom", "p"))
    survival = math.erfc(math.sqrt(square / 2)) + math.sqrt(2 * square / math.pi) * math.exp(-square / 2)
    assert p == pytest.approx(chi_square_p(list(statistics["letters"].values())), rel=1e-3)
    assert p == pytest.approx(survival, rel=1e-2)
    tokens = page.table("tokens", "Tokens")["captions"]
    files = known["captions"]["files"].values()
    for place, key in enumerate(("requests", "prompt_tokens", "completion_tokens")):
        assert int(tokens[place].replace(",", "")) == sum(file[key] for file in files)
    usd = sum(file["prompt_tokens"] + 2 * file["completion_tokens"] for file in files) / 1e6
    assert float(page.table("tokens")["USD in all, captions"][0]) == pytest.approx(usd, rel=1e-3)
    sessions = [session for record in known.values() for session in record.get("sessions", ())]
    assert len(page.tables["throughput", "Sessions"]) == 1 + len(sessions)


def test_lengths_and_variety_are_those_of_the_captions(page: Page, finished_run: Path) -> None:
    words = [len(row["caption"].split()) for row in rows(finished_run, "captions")]
    table = page.table("lengths")
    assert [float(table[f"words, {name}"][0]) for name in ("mean", "fewest", "most")] == pytest.approx(
        [np.mean(words), min(words), max(words)], rel=1e-3
    )
    assert [table[f"words, {name}"][1] for name in ("mean", "fewest", "most")] == ["129", "51", "483"]
    card = measure(row["caption"] for row in rows(finished_run, "captions"))
    variety = page.table("diversity")
    assert variety["type-token ratio"] == [f"{card['type_token_ratio']:.4g}", "0.68"]
    assert variety["token entropy, bits"] == [f"{card['entropy_bits']:.4g}", "6.07"]


def test_of_many_captions_some_are_measured(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_texts, "SAMPLE", 7)
    monkeypatch.setattr(report_texts, "BATCH_ROWS", 5)
    captions, kept = report_texts.survey(RunDir(finished_run), {1: {0, 6}}, lambda rows: None)
    assert 0 < len(captions.ratios) < 10 < captions.rows == 18
    assert [row["id"] for row in kept.values()] == ["0000100000", "0000100006"]


def test_the_gap_of_many_rows_is_measured_on_some(finished_run: Path) -> None:
    report = to_json(diagnose_run(RunDir(finished_run), rows=100, most=7))
    assert "of one row in 3" in report["remarks"][0]
    vectors = torch.cat([load_file(p)["embeddings"] for p in sorted((finished_run / "text_embeddings").iterdir())])
    found = {figure["key"]: figure["here"] for figure in report["sections"][0]["figures"]}
    assert found["rows"] == 6
    assert found["mean_norm"] == pytest.approx(float(vectors[::3].double().mean(0).norm()), abs=1e-9)
    rows = in_memory("rows", torch.arange(10_000.0).unsqueeze(1))
    assert torch.equal(torch.cat(list(rows.thinned(7).chunks())), rows.sample(10_000, 0)[::7])


def test_a_text_encoder_has_no_gap_and_the_page_says_why(page: Page) -> None:
    assert "joint_with_images: false" in page.sections["gap"]
    assert "That needs an encoder that embeds images too" in page.sections["gap"]
    assert page.table("gap", "Texts")["rows"][0] == "18"


def test_images_of_the_encoder_give_the_gap(run_copy: Path, tmp_path: Path) -> None:
    run = RunDir(run_copy)
    run.stage("text_embeddings")["fingerprint"]["joint_with_images"] = True
    run.save()
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(0.3, 1, (60, 384)))
    page = Page(write_report(run_copy, images=tmp_path / "images.npy")[0])
    found = page.table("gap", "Texts against raw images")
    assert any(float(here) > 0.2 and paper.startswith("text .392") for here, paper, _ in found.values())
    assert "Not measured: pairs of texts and raw images. That needs" in page.sections["gap"]


def test_rows_hold_all_that_was_made_of_them(page: Page, finished_run: Path) -> None:
    assert [row["id"] for row in page.rows] == [row["id"] for row in rows(finished_run, "captions")]
    captions = {row["id"]: row for row in rows(finished_run, "captions")}
    turns = {
        (task, row["id"]): row["conversations"]
        for task in ("multiple_choice", "question_answering", "complex_reasoning")
        for row in rows(finished_run, f"instructions/{task}")
    }
    assert sum(len(row["conversations"]) for row in page.rows) == len(turns)
    vectors = torch.cat([load_file(p)["embeddings"] for p in sorted((finished_run / "text_embeddings").iterdir())])
    cosines = (vectors.double() @ vectors.double().T).fill_diagonal_(-2)
    for number, row in enumerate(page.rows):
        assert (row["caption"], row["seed"]) == (captions[row["id"]]["caption"], captions[row["id"]]["seed"])
        for conversation in row["conversations"]:
            assert conversation["turns"] == turns[conversation["task"], row["id"]]
        nearest = cosines[number].topk(3)
        assert [near["id"] for near in row["neighbours"]] == [page.rows[at]["id"] for at in nearest.indices.tolist()]
        assert [near["cosine"] for near in row["neighbours"]] == pytest.approx(nearest.values.tolist(), abs=2e-3)


def test_the_same_run_gives_the_same_bytes(written: Path, finished_run: Path, tmp_path: Path) -> None:
    for path in write_report(finished_run, tmp_path, prices=(1.0, 2.0)):
        assert path.read_bytes() == (written / path.name).read_bytes(), path.name


def test_hostile_text_stays_text(run_copy: Path) -> None:
    for column in ("caption", "seed", "source", "model"):
        rewrite(run_copy, "captions", column, HOSTILE)
    turns = [{"from": "human", "value": HOSTILE}, {"from": "gpt", "value": HOSTILE}]
    rewrite(run_copy, "instructions/multiple_choice", "conversations", turns)
    content = manifest(run_copy)
    content["stages"]["seeds"]["sources"] = {HOSTILE: {"license": HOSTILE}}
    content["stages"]["captions"]["fingerprint"]["model"]["id"] = HOSTILE
    content["stages"]["text_embeddings"]["fingerprint"]["model"] = HOSTILE
    first = next(iter(content["stages"]["captions"]["files"].values()))
    first["rejected_by_reason"] = {HOSTILE: 2}
    (run_copy / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    target = run_copy.with_name("<b>run")
    run_copy.rename(target)
    page = Page(write_report(target)[0])  # with all figures, whose words and ids come from the run too
    assert not [tag for tag, _ in page.elements if tag in ("img", "b")]
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert "alert(1)</" not in page.source
    assert "<!--" not in page.source
    assert page.rows[0]["caption"] == page.rows[0]["seed"] == HOSTILE
    assert any(turn["value"] == HOSTILE for row in page.rows for c in row["conversations"] for turn in c["turns"])
    assert page.table("funnel", "Seed sources")[HOSTILE][0] == HOSTILE


def test_json_in_the_page_ends_no_script() -> None:
    text = embedded_json([HOSTILE])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == [HOSTILE]


def test_a_run_of_seeds_alone_says_what_is_missing(run_copy: Path) -> None:
    cut(run_copy, "captions", "instructions", "text_embeddings", "image_embeddings")
    page = Page(write_report(run_copy, rows=5)[0])
    assert list(page.sections) == SECTIONS
    for name in ("captions", "multiple choice", "text embeddings", "image embeddings"):
        assert f"{name}, not begun" in page.sections["stages"]
    assert "There is no caption yet" in page.sections["lengths"]
    assert len(page.rows) == 5
    seeds = {row["id"]: row["seed"] for row in rows(run_copy, "seeds")}
    assert all(row["seed"] == seeds[row["id"]] for row in page.rows)


def test_captions_without_vectors_and_conversations_are_shown(run_copy: Path) -> None:
    cut(run_copy, "instructions", "text_embeddings", "image_embeddings")
    page = Page(write_report(run_copy)[0])
    assert "Measured once every caption has its vectors" in page.sections["gap"]
    assert "Counted once a task has all its conversations" in page.sections["letters"]
    assert float(page.table("lengths")["words, mean"][0]) > 50
    assert all(row["caption"] and not row["neighbours"] for row in page.rows)


def test_a_stage_that_was_stopped_and_vectors_that_are_behind_count_as_unfinished(run_copy: Path) -> None:
    run = RunDir(run_copy)
    run.record("text_embeddings", 0)["rows"] -= 1
    known = stages(run)
    assert [known[name].state for name in ("captions", "text_embeddings")] == [FINISHED, UNFINISHED]
    run.stage("captions")["files"].pop("captions/00002.parquet")
    run.save()
    assert [stages(run)[name].state for name in ("seeds", "captions")] == [FINISHED, UNFINISHED]
    page = Page(write_report(run_copy)[0])
    assert "captions, 2 of 3 shards: python -m generation captions goes on" in " ".join(
        page.sections["stages"].split()
    )
    assert len(page.rows) == 16


def test_a_run_that_has_only_begun_gives_a_page(tmp_path: Path) -> None:
    RunDir(tmp_path / "run", create=True).save()
    page = Page(write_report(tmp_path / "run")[0])
    assert list(page.sections) == SECTIONS
    assert page.rows == []
    assert {stage.state for stage in stages(RunDir(tmp_path / "run")).values()} == {NOT_BEGUN}


def test_rows_are_drawn_and_the_page_stays_small(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(run_copy, "instructions", "text_embeddings", "image_embeddings")
    few = [row["id"] for row in Page(write_report(run_copy, tmp_path, rows=4)[0]).rows]
    assert len(few) == 4
    assert few == sorted(few)
    assert few != [row["id"] for row in rows(run_copy, "captions")[:4]]
    rewrite(run_copy, "captions", "caption", "<" * 40_000)
    monkeypatch.setattr(report_rows, "PAGE_BYTES", 1_000_000)
    path = write_report(run_copy, tmp_path)[0]
    assert len(Page(path).rows) == 4
    assert path.stat().st_size < 1_000_000 + 700_000


def test_bad_input_is_refused_by_name(run_copy: Path, tmp_path: Path) -> None:
    for wrong in (0, -1, 1001):
        with pytest.raises(RunError, match=f"--rows {wrong}: the page can hold 1 to 1000 rows"):
            write_report(run_copy, rows=wrong)
    with pytest.raises(RunError, match="is no run directory"):
        write_report(tmp_path / "nothing")
    with (run_copy / "captions" / "00001.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RunError, match=r"00001\.parquet was changed"):
        write_report(run_copy)
    assert not (run_copy / "report" / "report.html").exists()
