"""A rehearsal from end to end, as a process that starts the project's commands as processes; and its tables."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from generation.errors import RehearsalError
from generation.files import seal_table
from generation.rehearsal import children, counts, table
from generation.rehearsal.answers import KINDS
from generation.rehearsal.children import Took, bytes_of
from generation.rehearsal.command import check, grow, place, rehearse, rehearse_chaos
from generation.rehearsal.ground import Ground, ServerProcess
from generation.rehearsal.server import SLOTS
from generation.rehearsal.steps import Asked, Done, Step, steps, take
from tests.conftest import generation, manifest

ROWS = 150
STEPS = [
    *("seeds", "captions", "instructions", "embed", "transfer", "build unicorn-1.2m"),
    *("build unicorn-471k-instruction", "load", "stream", "train", "report"),
    *("verify run", "verify unicorn-1.2m", "verify unicorn-471k-instruction"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ground, list[Done]]:
    """All steps up to the builders; not to be changed."""
    ground = Ground(tmp_path_factory.mktemp("begun"), ROWS, 0)
    with ServerProcess(ground.folder / "account.counts", ground.logs / "server.err", SLOTS, 4000.0, 0) as server:
        return ground, [
            take(ground, server, step) for step in steps(ground, server.url)[: STEPS.index("transfer") + 1]
        ]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal whose run and data sets were kept; not to be changed."""
    folder = tmp_path_factory.mktemp("rehearsal")
    done = generation("rehearse", "--rows", ROWS, "--folder", folder, "--keep", "--tokens-per-s", 1000)
    assert done.returncode == 0, done.stderr
    assert (folder / "rehearsal.md").read_text() in done.stdout
    return folder


def test_the_steps_up_to_the_builders_are_measured(begun: tuple[Ground, list[Done]]) -> None:
    ground, done = begun
    assert [step.name for step in done] == STEPS[:5]
    assert all(step.took.status == 0 and step.took.cpu_s > 0 and step.took.peak_mb > 5 for step in done)
    seeds, captions, instructions, embed, transfer = done
    assert ROWS <= embed.rows == transfer.rows <= captions.rows < seeds.rows == ground.lines
    assert embed.bytes == bytes_of(ground.run / "text_embeddings") > embed.rows * 2560
    assert [one.kind for one in (*captions.asked, *instructions.asked)] == list(KINDS)
    for one in (*captions.asked, *instructions.asked):
        assert one.answers >= 10 and one.seconds > 0 and one.capacity > 0
    assert ground.account.answered_again() == 0
    assert manifest(ground.run)["stages"]["captions"]["fingerprint"]["model"]["id"] == "stand-in"
    assert manifest(ground.run)["stages"]["text_embeddings"]["fingerprint"]["model"] == "stand-in"


def test_a_step_that_fails_stops_the_rehearsal_with_its_last_words(begun: tuple[Ground, list[Done]]) -> None:
    wrong = Step("show", children.generation("show", "--run-dir", begun[0].run, "--id", "9999999999"))
    with pytest.raises(RehearsalError, match="step show ended with 1: error: .*no record"):
        take(begun[0], None, wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_step_is_measured(rehearsed: Path) -> None:
    figures = json.loads((rehearsed / "rehearsal.json").read_text())
    assert figures["faults"] == []
    assert [step["name"] for step in figures["steps"]] == STEPS
    for step in figures["steps"]:
        assert step["rows"] > 0 and step["seconds"] > 0 and step["cpu_s"] > 0 and step["status"] == 0
        assert 5 < step["peak_mb"] < 3000
    by_name = {step["name"]: step for step in figures["steps"]}
    captions = by_name["embed"]["rows"]
    assert ROWS <= captions <= by_name["captions"]["rows"] < by_name["seeds"]["rows"]
    assert by_name["embed"]["bytes"] == bytes_of(rehearsed / "run" / "text_embeddings") > captions * 2560
    assert by_name["load"]["rows"] == 2 * (captions + by_name["build unicorn-471k-instruction"]["rows"])
    asked = {one["kind"]: one for step in figures["steps"] for one in step["asked"]}
    assert list(asked) == ["captions", "multiple_choice", "question_answering", "complex_reasoning"]
    for one in asked.values():
        assert 0 < one["share"] < 1.5
    assert figures["totals"]["answered_again"] == 0
    assert 1 < figures["totals"]["disk"]["unicorn-1.2m"] < 3


@pytest.mark.slow
def test_the_projection_is_that_of_the_tokens_that_were_counted(rehearsed: Path) -> None:
    figures = json.loads((rehearsed / "rehearsal.json").read_text())
    sessions = manifest(rehearsed / "run")["stages"]["captions"]["sessions"]
    tokens = sum(session["completion_tokens"] for session in sessions)
    captions = figures["projection"][0]
    scale = 1_200_000 / manifest(rehearsed / "run")["stages"]["captions"]["balance"]["accepted"]
    assert captions["answer_tokens"] == pytest.approx(tokens * scale)
    assert captions["hours"] == pytest.approx(tokens * scale / 1000 / 3600)
    text = (rehearsed / "rehearsal.md").read_text()
    assert "1,000 answer tokens/s" in text
    assert all(f"| {step} |" in text for step in STEPS)


@pytest.mark.slow
def test_nobody_takes_what_stand_ins_made_for_training_data(rehearsed: Path) -> None:
    for name in ("unicorn-1.2m", "unicorn-471k-instruction"):
        card = (rehearsed / "sets" / name / "README.md").read_text().split("\n---\n")[1].strip()
        assert card.startswith("> **A rehearsal, not training data.** Its text and vectors were made up by a stand-in")
    page = (rehearsed / "run" / "report" / "report.html").read_text()
    assert "A rehearsal, not training data." in page


@pytest.mark.slow
def test_a_folder_that_is_not_empty_is_left_alone(rehearsed: Path) -> None:
    before = bytes_of(rehearsed)
    done = generation("rehearse", "--rows", ROWS, "--folder", rehearsed)
    assert done.returncode == 1
    assert f"error: {rehearsed} is not empty; name another --folder" in done.stderr
    assert bytes_of(rehearsed) == before


# -- counts that do not add up -------------------------------------------------------------------------------------


@pytest.fixture
def ground(begun: tuple[Ground, list[Done]], tmp_path: Path) -> Ground:
    """A copy that may be damaged."""
    shutil.copytree(begun[0].folder, tmp_path / "copy")
    return Ground(tmp_path / "copy", ROWS, 0)


def loaded(folder: Path) -> dict[str, int]:
    run = manifest(folder / "run")["stages"]
    conversations = sum(record["balance"]["accepted"] for name, record in run.items() if name.startswith("instr"))
    return {
        "unicorn-1.2m default": run["captions"]["balance"]["accepted"],
        "unicorn-471k-instruction with_embeddings": conversations,
    }


def edit(ground: Ground, stage: str, **facts: object) -> None:
    data = manifest(ground.run)
    data["stages"][stage] |= facts
    (ground.run / "manifest.json").write_text(json.dumps(data))


def test_a_whole_rehearsal_has_no_fault(ground: Ground) -> None:
    assert counts.faults(ground, loaded(ground.folder)) == []


def test_rows_that_were_not_loaded_are_told(ground: Ground) -> None:
    rows = loaded(ground.folder)
    rows["unicorn-1.2m default"] -= 1
    (fault,) = counts.faults(ground, rows)
    assert fault.startswith("unicorn-1.2m default: ")


def test_a_caption_that_is_lost_is_told(ground: Ground) -> None:
    path = ground.run / "captions" / "00003.parquet"
    seal_table(path, pq.read_table(path).slice(1))
    assert any(fault.startswith("shard 3: ") for fault in counts.faults(ground, loaded(ground.folder)))


def test_a_caption_that_is_there_twice_is_told(ground: Ground) -> None:
    path = ground.run / "captions" / "00003.parquet"
    rows = pq.read_table(path)
    seal_table(path, rows.take([0, *range(len(rows) - 1)]))
    assert any(fault.startswith("shard 3: ") for fault in counts.faults(ground, loaded(ground.folder)))


def test_a_balance_that_does_not_add_up_is_told(ground: Ground) -> None:
    balance = manifest(ground.run)["stages"]["captions"]["balance"]
    edit(ground, "captions", balance=balance | {"rejected": balance["rejected"] + 1})
    assert any("rejected rows" in fault for fault in counts.faults(ground, loaded(ground.folder)))


def test_fewer_captions_than_were_wanted_are_told(ground: Ground) -> None:
    ground.rows = 10_000
    assert any("fewer than the 10000" in fault for fault in counts.faults(ground, loaded(ground.folder)))


def test_answers_that_the_server_did_not_give_are_told(ground: Ground) -> None:
    ground.account.add("captions", -50)
    assert any(
        fault.startswith("captions: the rows tell of") for fault in counts.faults(ground, loaded(ground.folder))
    )


# -- tables --------------------------------------------------------------------------------------------------------


def step(name: str, rows: int, seconds: float, peak_mb: float) -> Done:
    return Done(name, rows, Took(seconds, seconds, peak_mb, 0, "", ""), 0)


def test_growth_is_said_in_words_where_it_is_none_of_the_rows_or_one_of_the_memory() -> None:
    sizes = {
        1000: [step("even", 1000, 10, 100), step("slow", 1000, 10, 100), step("fat", 1000, 10, 100)],
        9000: [step("even", 9000, 80, 110), step("slow", 9000, 200, 100), step("fat", 9000, 90, 900)],
    }
    text, said = table.growth(sizes)
    assert [line.split(":")[0] for line in said] == ["slow", "fat"]
    assert "from 100 to 900 MB, 100.00 kB a row" in said[1]
    assert "| even | 10.000 | 8.889 | 100 | 110 |" in text


def test_the_clients_share_is_that_of_all_its_time() -> None:
    assert Asked("captions", 900, 1.0, 1000.0).share == pytest.approx(0.9)
    assert Asked("captions", 0, 0.0, 1000.0).share == 0.0


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", 5), "5 rows: a rehearsal needs 100 or more"),
        (("--keep",), "--keep needs --folder"),
        (("--growth", 200), "--growth 200: name two sizes or more"),
        (("--growth", 200, 50), "50 rows: a rehearsal needs 100 or more"),
        (("--growth", 200, 300, "--chaos"), "--growth goes neither with --chaos nor with --keep"),
        (("--tokens-per-s", 0), "--tokens-per-s 0: it must be above 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments: tuple[object, ...], message: str) -> None:
    done = generation("rehearse", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_rows_are_refused_by_each_way(tmp_path: Path) -> None:
    for way in (lambda: rehearse(9), lambda: rehearse_chaos(9), lambda: grow([9, 200]), lambda: check(9)):
        with pytest.raises(RehearsalError, match="9 rows"):
            way()


def test_a_temporary_place_is_gone_afterwards(tmp_path: Path) -> None:
    with place(None) as folder:
        (folder / "file").write_text("")
    assert not folder.exists()
    with pytest.raises(RehearsalError, match=re.escape(str(tmp_path / "file"))):
        (tmp_path / "file").write_text("")
        with place(tmp_path / "file"):
            pass
