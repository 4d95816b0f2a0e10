"""The judge: what it does not confirm goes, nothing is judged twice, and what is left too small is asked again."""

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from generation import stages
from generation.__main__ import main
from generation.errors import RunError
from generation.estimate import estimate_run
from generation.instructions import InstructionTask, conversation, items_of
from generation.judge import CONFIRMED, JudgeTask, judge_captions, judged_share, make_judgements, retry_rejected
from generation.stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, Row, row_id
from generation.store import Run, parquet
from generation.tgi.client import Answer
from generation.verify import verify_path
from tests.fake_server import FakeServer
from tests.test_instructions import make_run as make_any_run
from tests.test_text_cases import DEFECTS, GOOD, answered

TASK = "multiple_choice"
STAGE = INSTRUCTIONS[TASK]
Truth = set[tuple[str, str]]  # question, text of a right answer
_CHOSEN = re.compile(r"^([A-D]): (.*)$", re.M)


class Judge(FakeServer):
    """A server that knows the truth of every question, and errs in a share of its answers."""

    def __init__(self, truth: Truth, error: float = 0.0) -> None:
        super().__init__("tgi", script=self.judge, max_total_tokens=9_000)
        self.truth, self.error, self.judged = truth, error, Counter[str]()

    def judge(self, body: Any, number: int) -> str | None:
        prompt = body["messages"][-1]["content"]
        if "Which of these answers" not in prompt:
            return None
        question = prompt.split("Question: ")[1].split("\n")[0]
        self.judged[question] += number > 0  # the first request warms up
        answers = _CHOSEN.findall(prompt.split("Question: ")[1])
        right = [letter for letter, text in answers if (question, text) in self.truth]
        if stages.stable_hash(question, self.judged[question]) % 1000 < 1000 * self.error:
            right = [letter for letter, _ in answers if letter not in right][:1]
        return json.dumps({"Right": right})


def make_run(path: Path, url: str, items: list[int], **judge: Any) -> Run:
    tasks = {task: {"prompt": task, "fraction": 1.0, "items": items} for task in TASKS}
    return make_any_run(path, instructions=tasks, judge=judge, server={"endpoints": [url]})


def fill(run: Run, task: str, rows: list[tuple[str, list[dict[str, Any]]]]) -> None:
    """Commit captions, and their conversations for one task; the other tasks have none."""
    seeds = [{"id": row_id(0, number), "seed": "A scene."} for number in range(len(rows))]
    captions, conversations = list[Row](), list[Row]()
    for seed, (text, items) in zip(seeds, rows, strict=True):
        captions.append(seed | {"caption": text, "input_hash": stages.text_hash("A scene."), "attempts": 1})
        columns = {"question_types": ["object"] * len(items), "grounded": [1.0] * len(items), "dropped": []}
        columns |= {"id": seed["id"], "task": task, "conversations": conversation(items, task, seed["id"])}
        conversations.append(columns | {"input_hash": stages.text_hash(text), "attempts": 1})
    for stage, made, schema in ((SEEDS, seeds, stages.SEED_SCHEMA), (CAPTIONS, captions, stages.CAPTION_SCHEMA)):
        run.commit(stage, 0, len(rows), parquet(pa.Table.from_pylist(made, schema)), counts={"rejected": {}})
    for name in TASKS:
        table = pa.Table.from_pylist(conversations if name == task else [], stages.INSTRUCTION_SCHEMA)
        extra = InstructionTask(run, name).extra
        run.commit(INSTRUCTIONS[name], 0, len(table), parquet(table), None, extra, {"rejected": {}})


def chosen(number: int, given: str = "A") -> dict[str, Any]:
    options = {"A": "a ball", "B": "a shoe", "C": "a fish", "D": "a hat"}
    return {"Question": f"What does dog {number} carry?", "Options": options, "Answer": given}


TRUTH: Truth = {(f"What does dog {number} carry?", "a ball") for number in range(20)}


def test_a_judge_who_errs_once_in_twenty_times_drops_the_defects_and_keeps_the_good(tmp_path: Path) -> None:
    """Issue 17: at least 90 % of the defects gone, under 3 % of the good items lost, without the rules' help."""
    rows: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {task: [] for task in TASKS}
    truth, bad, lost = Truth(), set[str](), Counter[bool]()
    for number, row in enumerate(GOOD["conversations"] + [row for row in DEFECTS if row["stage"] != "caption"]):
        items, task = copy.deepcopy(answered(row)), row.get("task", row.get("stage"))
        for place, item in enumerate(items):
            item["Question"] = f"{number}.{place}: {item['Question']}"
            if place in row.get("bad", []):
                bad.add(item["Question"])
                continue
            truth.add((item["Question"], item.get("Options", {}).get(item["Answer"], item["Answer"])))
            if "Options" in item and number % 2 and place == 0:  # a wrong letter, which no rule can see
                item["Answer"] = next(letter for letter in "ABCD" if letter != item["Answer"])
                bad.add(item["Question"])
        rows[task].append((row["caption"], items))
    with Judge(truth, error=0.05) as server:
        for task in TASKS:
            run = make_run(tmp_path / task, server.url, [1, 8])
            fill(run, task, rows[task])
            make_judgements(run)
            kept = [items_of(row["conversations"]) for row in run.table(INSTRUCTIONS[task], 0).to_pylist()]
            left = {qa["Question"] for items in kept for qa in items}
            questions = [item["Question"] for _, items in rows[task] for item in items]
            lost.update(question in bad for question in questions if question not in left)
    assert lost[True] >= 0.9 * len(bad) > 15
    assert lost[False] < 0.03 * (len(truth) - len(bad))


def test_what_is_not_confirmed_is_dropped_counted_and_never_judged_again(tmp_path: Path, capsys: Any) -> None:
    items = [chosen(0), chosen(1, "B"), chosen(2), chosen(3)]
    with Judge(TRUTH | {("What does dog 3 carry?", "a fish")}) as server:
        run = make_run(tmp_path / "run", server.url, [2, 4])
        fill(run, TASK, [("A dog carries a ball.", items)])
        estimate_run(run.path, run.recipe, probes=0)
        assert f"judgements/{TASK}: 4 rows to request, prompt judge@" in capsys.readouterr().out
        make_judgements(run)
        row, record = run.table(STAGE, 0).to_pylist()[0], run.record(STAGE, 0)
        questions = [item["Question"] for item in items]
        assert [qa["Question"] for qa in items_of(row["conversations"])] == [questions[0], questions[2]]
        assert row["conversations"][0]["value"].count("<image>") == 1
        assert sorted(row["dropped"]) == ["judge_two_right", "judge_wrong_letter"]
        assert record is not None and record.counts["dropped"] == dict.fromkeys(row["dropped"], 1)
        assert len(row["question_types"]) == len(row["grounded"]) == 2
        verdicts = run.table(JUDGEMENTS[TASK], 0).to_pylist()
        assert {verdict["id"].partition("/")[0] for verdict in verdicts} == {row["id"]}
        assert sorted((verdict["verdict"], verdict["votes"]) for verdict in verdicts) == [
            *[(CONFIRMED, '[["A"]]')] * 2,
            ("two_right", '[["A", "C"], ["A", "C"]]'),
            ("wrong_letter", '[["A"], ["A"]]'),
        ]
        assert server.judged == dict(zip(questions, (1, 2, 1, 2), strict=True))
        assert judged_share(run, TASK, 0) == {row["id"]: 1.0}
        # A kill after the conversations were rewritten leaves the verdicts due: they are found by their texts.
        run.reopen(JUDGEMENTS[TASK], 0)
        make_judgements(Run(run.path))
        assert server.judged.total() == 6
        assert len(run.table(JUDGEMENTS[TASK], 0)) == 4
        verify_path(run.path)
        # Without drop, verdicts are recorded and nothing changes.
        run = make_run(tmp_path / "kept", server.url, [1, 4], drop=False)
        fill(run, TASK, [("A dog.", [chosen(0), chosen(1, "D")]), ("Dogs.", [chosen(2)])])
        before = run.table(STAGE, 0)
        make_judgements(run)
        assert run.table(STAGE, 0) == before
        assert judged_share(run, TASK, 0) == {row_id(0, 0): 0.5, row_id(0, 1): 1.0}
        assert judged_share(run, "question_answering", 0) == {}


def test_what_has_too_little_left_is_asked_again_and_once_more_by_retry(tmp_path: Path, capsys: Any) -> None:
    scene = "A dog carries a ball past a long wall, a bench, a tree and a gate."
    with Judge(TRUTH) as server:
        run = make_run(tmp_path / "run", server.url, [2, 3])
        fill(run, TASK, [(scene, [chosen(0), chosen(1, "B")]), (scene, [chosen(2), chosen(3)])])
        make_judgements(run)  # the fake's own questions are not in the truth, so all are refused
        record, rejected = run.record(STAGE, 0), run.rejected(STAGE, 0)
        assert record is not None and record.counts["rejected"] == {"judge_final": 1}
        assert rejected is not None and rejected["attempts"].to_pylist() == [3]
        assert not run.is_due(JUDGEMENTS[TASK], 0)
        verify_path(run.path)
        asked = server.counts["requests"]
        make_judgements(run)
        assert retry_rejected(run, ["loop", "mood"]) == {}
        assert "No rejected row has the reason loop or mood" in capsys.readouterr().out
        assert server.counts["requests"] == asked
        server.script = None  # a judge who finds its own questions sound
        assert retry_rejected(run, ["judge_final"]) == {"instructions/multiple_choice": 1}
        assert not run.rejected(STAGE, 0)
        assert len(run.table(STAGE, 0)) == 2
        assert judged_share(run, TASK, 0) == {row_id(0, 0): 1.0, row_id(0, 1): 1.0}
        verify_path(run.path)


VOTES = {
    CONFIRMED: ["a ball", "a shoe, a ball, a ball", "?, a ball"],
    "undecided": ["a shoe", "a shoe, a ball"],
    "wrong_letter": ["a shoe, a ball, a hat"],
    "two_right": ["a shoe|a ball, a shoe|a ball"],
    "unsupported": [", "],
    "schema": ["?"],
}


@pytest.mark.parametrize(("verdict", "said"), [(verdict, said) for verdict in VOTES for said in VOTES[verdict]])
def test_two_votes_of_three_decide_and_unreadable_ones_do_not_count(tmp_path: Path, verdict: str, said: str) -> None:
    votes = said.split(", ")
    run = make_run(tmp_path / "run", "http://127.0.0.1:1", [1, 4])
    fill(run, TASK, [("A dog.", [chosen(0)])])
    assert run.recipe.judge is not None
    task, answers, orders = JudgeTask(run, JUDGEMENTS[TASK], run.recipe.judge), list[Answer](), set[Any]()
    item = task.items(run, 0)[0]
    for attempt, vote in enumerate(votes, 4):  # as after three attempts of an earlier session
        shown = _CHOSEN.findall(task.request(item, attempt).messages[-1]["content"].split("Question: ")[1])
        letters = [letter for letter, text in shown if text in vote.split("|")]
        orders.add(tuple(shown))
        answers.append(Answer(json.dumps({"Right": letters}) if vote != "?" else "?", "stop", 1, 1))
        found = task.accept(item, answers)
    assert (found["verdict"] if isinstance(found, dict) else found) == verdict
    assert len(orders) == len(votes)  # one an attempt


def test_captions_that_leave_their_seed_are_dropped(tmp_path: Path) -> None:
    def script(body: Any, number: int) -> str:
        prompt = body["messages"][-1]["content"]
        assert "A: A scene." in prompt
        return json.dumps({"Right": [] if "Account: A horse." in prompt else ["A"]})

    with FakeServer("tgi", script=script, max_total_tokens=9_000) as server:
        run = make_run(tmp_path / "run", server.url, [1, 4])
        fill(run, TASK, [("A dog.", [chosen(0)]), ("A horse.", [chosen(1)])])
        assert main(["judge", "--captions", "--run-dir", str(run.path)]) == 0
        assert run.table(CAPTIONS, 0)["caption"].to_pylist() == ["A dog."]
        rejected = run.rejected(CAPTIONS, 0)
        assert rejected is not None and rejected["reason"].to_pylist() == ["judge_final"]
        asked = server.counts["requests"]
        judge_captions(run)
        assert server.counts["requests"] == asked
        verdicts = run.table(CAPTION_JUDGEMENTS, 0).to_pylist()
        assert {row["input_hash"]: row["verdict"] for row in verdicts} == {  # as the builder looks them up
            stages.text_hash("A scene.", "A dog."): CONFIRMED,
            stages.text_hash("A scene.", "A horse."): "unsupported",
        }
        verify_path(run.path)
        with pytest.raises(RunError, match="no section 'judge'"):
            judge_captions(Run(tmp_path / "other", run.recipe.model_copy(update={"judge": None}), create=True))
