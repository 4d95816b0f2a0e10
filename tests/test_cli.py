"""The command line: fast help, one-line errors, JSON lines, and streams that cannot be written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from generation.__main__ import main
from tests.conftest import ROOT, command, generation, write_recipe


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'pyarrow', 'pydantic', 'datasets', 'transformers', 'tqdm', 'aiohttp', 'numpy'}"
    done = command("-c", f"import sys, generation.__main__; print(sorted({heavy} & sys.modules.keys()))")
    assert done.stdout.strip() == "[]"
    shown = generation("--help")
    assert shown.returncode == 0 and "captions" in shown.stdout and generation().stdout == shown.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["captions"], 2, "Missing option '--run-dir'"),
        (["captions", "--run-dir", "/nowhere"], 1, "Not a run directory: /nowhere (no run.json)"),
        (["show", "--run-dir", "/dev/null/x"], 1, "Not a run directory"),
        (["show", "--run-dir", "{recipe}"], 2, "is a file"),
        (["seeds", "--run-dir", "", "--config", "{recipe}"], 2, "an argument is empty"),
        (["verify", "a" * 300], 1, "File name too long"),
        (["verify", "/nowhere"], 1, "neither a run"),
        (["seeds", "--run-dir", "/proc/x", "--config", "{recipe}"], 1, "cannot write /proc/x"),
        (["seeds", "--run-dir", "{folder}", "--config", "/nowhere.yaml"], 1, "recipe /nowhere.yaml does not exist"),
        (["captions", "--run-dir", "{folder}", "--rank", "2"], 1, "--rank 2 must be below --world-size 1"),
        (["verify", "{folder}", "--log-json=/nowhere/x"], 1, "--log-json /nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], status: int, message: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    done = generation(*(text.format(folder=tmp_path / "run", recipe=recipe) for text in arguments))
    assert done.returncode == status and message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_json_lines_are_all_that_stderr_holds(tmp_path: Path) -> None:
    place = ("--config", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    done = generation("seeds", *place, "--log-json")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["status"] == "done"
    refused = generation("verify", "/nowhere", f"--log-json={tmp_path / 'log'}")
    assert json.loads((tmp_path / "log").read_text())["status"] == "failed" and "error: " in refused.stderr


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", ">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_streams_that_cannot_be_written_do_not_end_a_run(redirect: str, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run #?%[1]"
    line = f"{sys.executable} -m generation seeds --config {recipe} --run-dir '{run}' {redirect}"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list((run / "seeds").glob("*.parquet"))) == 3


def test_full_disks_ascii_terminals_and_foreign_names_give_one_line(tmp_path: Path) -> None:
    line = f"{sys.executable} -m generation --help >/dev/full"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr == "error: [Errno 28] No space left on device\n"
    done = generation("verify", tmp_path / "s\u00e9ed \udcff", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 1 and "neither a run" in done.stderr


FILES = (b"", b"{", b"[]", b"{}", b'{"format": 2}', b'{"files": {"a": {}}}', b"\xff\xfe", b"[" * 20_000)
VALUES = ("", "-", "x", "0", "-1", "1e309", "nan", "\u00e9", "a b", "::", "\udcff", "{folder}", "{folder}/no")
COMMANDS = {
    "verify": ["{}"],
    "report": ["{}", "--rows={}", "--output={}"],
    "export": ["{}", "--output={}", "--format={}"],
    "show": ["--run-dir={}", "--id={}"],
    "duplicates": ["--run-dir={}", "--stage={}", "--questions={}"],
    "retry": ["{}", "--reason={}", "--endpoint={}"],
    "import-original": ["{}", "--run-dir={}"],
    "seeds": ["--run-dir={}", "--config={}"],
}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(COMMANDS)),
    values=st.lists(st.sampled_from(VALUES), min_size=3, max_size=3),
    contents=st.lists(st.sampled_from(FILES), min_size=3, max_size=3),
)
@example(name="retry", values=["{folder}", "x", "x"], contents=[b'{"format": 2, "recipe": [1]}', b"", b""])
def test_no_arguments_or_files_give_a_traceback(
    name: str, values: list[str], contents: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    monkeypatch.chdir(folder)
    for file, content in zip(("run.json", "manifest.json", "recipe.yaml"), contents, strict=True):
        (folder / file).write_bytes(content)
    filled = [text.replace("{folder}", str(folder)) for text in values]
    status = main([name, *(option.format(text) for option, text in zip(COMMANDS[name], filled, strict=False))])
    said = capsys.readouterr().err
    assert status in (0, 1, 2) and "This is a bug" not in said, said


def test_a_forked_child_that_is_terminated_does_not_end_its_parent() -> None:
    code = (
        "import generation.cli as c, multiprocessing as m, signal, time; c.GRACE_S = 0; fork = m.get_context('fork')"
    )
    code += "; signal.set_wakeup_fd(c._grace_period()); signal.signal(15, signal.default_int_handler); child = "
    code += "fork.Process(target=time.sleep, args=(9,)); child.start(); time.sleep(1); child.terminate(); child.join()"
    assert command("-c", f"{code}; time.sleep(1); assert child.exitcode == -15").returncode == 0
