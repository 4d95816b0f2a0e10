"""What the cards say, and that all text of a run is data in them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

import tests.runs
from generation.builders.build import build
from generation.errors import DatasetError
from generation.files import read_json, write_json
from tests.runs import make_run
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

BOTH = [Unicorn12M, Unicorn471KInstruction]
EVIL = [
    "<script>alert(1)</script>",
    "a | b `c` {{ 7 * 7 }}",
    "[x](javascript:alert(1))",
    "$x$ **bold** # head",
    "1. *",
]
SECTIONS = (
    "Use it|Rows|Examples?|Columns|How it was made|Quality|Limits|Intended use.*|Bias|Licences|Versions|"
    "Citation and contact|Changelog"
)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetCard]:
    folder = tmp_path_factory.mktemp("cards")
    card = {"authors": ["Ada Example"], "homepage": "https://example.org", "bibtex": "@misc{ada, title={A}}"}
    make_run(folder / "run", judged=True, recipe={"card": card, "server": {"endpoints": ["http://secret:8000"]}})
    for cls in BOTH:
        build(cls, folder / "run", folder / cls.NAME, version="1.2.3", repo_id=f"user/{cls.NAME}")
        assert "secret" not in (folder / cls.NAME / "manifest.json").read_text()
    return {cls.NAME: DatasetCard.load(folder / cls.NAME / "README.md") for cls in BOTH}


@pytest.mark.parametrize("name", ["unicorn-1.2m", "unicorn-471k-instruction"])
def test_a_card_has_its_parts_in_order_and_answers_on_the_first_screen(
    name: str, cards: dict[str, DatasetCard]
) -> None:
    card = cards[name]
    found = re.findall(r"^## (.+)$", card.text, re.MULTILINE)
    assert all(re.fullmatch(*pair) for pair in zip(SECTIONS.split("|"), found, strict=True))
    screen = card.text[:1800]
    assert "figures/record.svg" in screen and "There are no images in it" in screen
    assert f'load_dataset("user/{name}", split="train", revision="v1.2.3")' in screen
    assert "small model wrote" not in screen
    for fact in ("Ada Example", "@misc{ada", "https://example.org", "fake/Model-Instruct", "fake/encoder"):
        assert fact in card.text
    assert ("27 conversations to teach" if "471k" in name else "18 dense captions") in screen
    wanted = {"expand_caption", "judge_captions"}
    if "471k" in name:
        wanted = {"multiple_choice", "question_answering", "complex_reasoning", "judge"}
        assert "| what | 27 | 50.0 % |" in card.text  # questions by type
        assert "27 questions were dropped from accepted answers" in card.text and "| letter | 27 |" in card.text
    assert {found.split("@")[0] for found in re.findall(r"^`(\w+@[\d.]+)`", card.text, re.MULTILINE)} == wanted


def test_metadata_is_legal_other_is_said_only_where_licences_differ_and_a_small_model_is_called_so(
    cards: dict[str, DatasetCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, card in cards.items():
        data = card.data
        assert (data.license, data.size_categories) == ("other", ["n<1K"])
        assert data["license_link"] == f"https://huggingface.co/datasets/user/{name}#licences"
        assert "## Licences" in card.text
        assert [config["config_name"] for config in data["configs"]] == ["default", "with_embeddings"]
        assert {config["version"] for config in data["configs"]} == {"1.2.3"}
    monkeypatch.setitem(tests.runs.LICENSES, "alpha", "Apache-2.0")
    monkeypatch.setattr(tests.runs, "MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
    make_run(tmp_path / "run")
    for cls in BOTH:
        build(cls, tmp_path / "run", tmp_path / cls.NAME)
        card = DatasetCard.load(tmp_path / cls.NAME / "README.md")
        assert (card.data.license, card.data.get("license_link")) == ("apache-2.0", None)
        assert "A small model wrote this text" in card.text.split("![")[1][:200]


def test_all_text_of_a_run_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\n".join(EVIL)
    monkeypatch.setattr(tests.runs, "_THINGS", (evil,))
    monkeypatch.setattr(tests.runs, "MODEL", EVIL[0])
    monkeypatch.setattr(tests.runs, "LICENSES", {"alpha": EVIL[1], "beta": EVIL[2]})
    make_run(tmp_path / "run", recipe={"card": {"authors": [EVIL[2]], "homepage": EVIL[2]}})
    for cls in BOTH:
        build(cls, tmp_path / "run", tmp_path / cls.NAME)
        text = DatasetCard.load(tmp_path / cls.NAME / "README.md").text
        html = MarkdownIt("commonmark", {"html": True}).enable(["table"]).render(text)  # as permissive as can be
        figure = (tmp_path / cls.NAME / "figures" / "record.svg").read_text()
        assert {node.tag.partition("}")[2] for node in ElementTree.fromstring(figure).iter()} == {
            "svg",
            "rect",
            "text",
        }
        assert "&lt;script&gt;alert(1)" in figure and "<script" not in html
        assert not re.search(r"href=.javascript", html)
        assert "<strong>bold" not in html and "<code>c</code>" not in html
        assert "a | b `c` {{ 7 * 7 }}" in html and "&lt;script&gt;alert(1)" in html


def test_a_prompt_that_was_changed_since_the_run_fails_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run").path / "captions" / "stage.json"
    stage = read_json(path)
    write_json(path, stage | {"identity": stage["identity"] | {"prompt_sha256": "0" * 64}})
    with pytest.raises(DatasetError, match="was changed since the run"):
        build(Unicorn12M, tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_changelog_is_carried_on_in_numbers(tmp_path: Path) -> None:
    run, output = make_run(tmp_path / "run").path, tmp_path / "unicorn-471k-instruction"
    for _ in range(2):
        assert build(Unicorn471KInstruction, run, output)["changelog"] == [["1.0.0", "first version"]]
    make_run(run, shards=4)
    (version, text), *others = build(Unicorn471KInstruction, run, output, version="1.1.0")["changelog"]
    assert (version, others) == ("1.1.0", [["1.0.0", "first version"]])
    assert "+3 rows of task multiple_choice" in text and text.endswith("; all vectors moved")
    with pytest.raises(DatasetError, match="version 1.0.9 is lower than 1.1.0"):
        build(Unicorn471KInstruction, run, output, version="1.0.9")
