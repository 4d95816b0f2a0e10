"""A second model's verdicts: one an answer, resumable, noted, and without effect on the rows."""

from pathlib import Path

from tests.conftest import TASK_NAMES, generation, manifest, rows
from tests.fake_tgi import FakeTGI
from tests.test_pipeline import answered


def test_every_answer_is_judged_once_and_nothing_is_dropped(run_copy: Path) -> None:
    options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy)
    before = {task: rows(run_copy, f"instructions/{task}") for task in TASK_NAMES}
    with FakeTGI(model_id="a/Judge") as server:
        done = generation("instructions", *options, "--endpoint", server.url, "--judge", server.url)
        assert done.returncode == 0, done.stderr
        asked = answered(server)
        again = generation("instructions", *options, "--endpoint", server.url, "--judge", server.url)
        assert again.returncode == 0
        assert answered(server) == asked
    for task in TASK_NAMES:
        assert rows(run_copy, f"instructions/{task}") == before[task]
        verdicts = rows(run_copy, f"judgements/{task}")
        turns = [(row["id"], number) for row in before[task] for number in range(len(row["conversations"]) // 2)]
        assert [(row["conversation"], row["turn"]) for row in verdicts] == turns
        assert {row["follows"] for row in verdicts} <= {"yes", "no"}
        counted = manifest(run_copy)["stages"][f"judgements/{task}"]["verdicts"]
        assert sum(counted.values()) == len(verdicts)
        assert f"{task}: " in done.stdout
    bodies = [request["body"] for request in server.requests if request["route"] == "/v1/chat/completions"]
    assert all(body["response_format"]["value"]["schema"]["required"] == ["Follows"] for body in bodies)


def test_the_right_option_is_shown_to_the_judge_with_its_text(run_copy: Path) -> None:
    options = ("--config", run_copy.parent / "recipe.yaml", "--run-dir", run_copy)
    with FakeTGI(model_id="a/Judge") as server:
        generation("instructions", *options, "--endpoint", server.url, "--judge", server.url)
        prompts = [
            r["body"]["messages"][-1]["content"] for r in server.requests if r["route"] == "/v1/chat/completions"
        ]
    row = rows(run_copy, "instructions/multiple_choice")[0]
    letter = row["conversations"][1]["value"]
    line = next(line for line in row["conversations"][0]["value"].split("\n") if line.startswith(f"{letter}: "))
    assert any(f"Answer: {line}" in prompt for prompt in prompts)
    assert not any("<image>" in prompt for prompt in prompts)
