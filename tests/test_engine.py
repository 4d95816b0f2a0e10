"""The engine: every item ends once, as a row or a rejected row, whatever stops a session in between."""

import asyncio
import json
import resource
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import engine
from generation.config import Server
from generation.engine import Item, generate, retry
from generation.engine.work import Journal
from generation.errors import FatalServerError, RequestRejected, RunError, StageFailed
from generation.prompts import load_prompt
from generation.recipe import parse_recipe
from generation.stages import CAPTIONS, INSTRUCTIONS, SEED_SCHEMA, SEEDS, Row, Stage, row_id, stable_hash, text_hash
from generation.store import Run, parquet
from generation.tgi.client import Answer, Request
from generation.tgi.scheduler import RequestStats

RECIPE = parse_recipe({"name": "t", "directory": "/", "seeds": {"captions": []}}, "test")
Reply = Callable[[str, int], str | Exception]  # of a seed and the number of its request


def sampling_seed(shard: int, row: int, attempt: int) -> int:
    return stable_hash(row_id(shard, row), attempt) % (2**31 - 1) + 1


class FakeTask:
    """Captions by the simplest rule: an answer that begins with "bad" fails for the reason that it names."""

    prompt = load_prompt("expand_caption_small")
    attempts = 3

    def __init__(self, stage: Stage = CAPTIONS, **extra: str) -> None:
        self.stage, self.extra = stage, extra

    def items(self, run: Run, shard: int) -> list[Item]:
        rows = run.table(self.stage.source or SEEDS, shard).to_pylist()
        text = "seed" if self.stage is CAPTIONS else "caption"
        return [Item(row["id"], text_hash(row[text]), {"text": row[text]}) for row in rows]

    def request(self, item: Item, attempt: int) -> Request:
        seed = sampling_seed(int(item.id[:5]), int(item.id[5:]), attempt)
        return Request([{"role": "user", "content": item.values["text"]}], self.prompt.sampling, seed)

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        said = answers[-1].text
        if said.startswith("bad"):
            return said.split()[1]
        turns = {"conversations": [{"from": "human", "value": said}], "grounded": [1, 0.5]}
        return {"caption": said, "words": len(said.split())} if self.stage is CAPTIONS else turns


class FakeScheduler:
    """The scheduler's interface over a function; the order of the answers is random."""

    capacity, running, waiting = 4, 0, 0
    infos = [SimpleNamespace(kind="tgi", version="3", model_id="fake/model", model_revision="abc")]

    def __init__(self, reply: Reply | None = None, stop_after: int | None = None) -> None:
        self.reply, self.stop_after = reply or (lambda text, n: f"A caption of {text}."), stop_after
        self.asked: list[tuple[str, int]] = []
        self.warmed_up: list[Request] = []
        self.connections = 0

    @asynccontextmanager
    async def connect(self, server: Server) -> AsyncIterator["FakeScheduler"]:
        self.connections += 1
        yield self

    def body(self, request: Request) -> bytes:
        return json.dumps(request.messages).encode()

    async def warm_up(self, requests: list[Request]) -> None:
        self.warmed_up += requests
        if isinstance(said := self.reply(requests[0].messages[0]["content"], 0), Exception):
            raise FatalServerError(f"the warm-up request was refused: {said}", 403)

    async def ask(self, request: Request, stats: RequestStats) -> Answer:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise FatalServerError("the server is gone")
        text = request.messages[0]["content"]
        self.asked.append((text, request.seed))
        stats.requests += 1
        number = sum(seen == text for seen, _ in self.asked)
        for _ in range(stable_hash("delay", request.seed) % 5):
            await asyncio.sleep(0)
        said = self.reply(text, number)
        if isinstance(said, Exception):
            raise said
        return Answer(said, "stop", 10, len(said.split()), 1)


def add_seeds(run: Run, shard: int, texts: list[str]) -> None:
    rows = [{"id": row_id(shard, n), "seed": text, "source": "a", "license": "MIT"} for n, text in enumerate(texts)]
    run.commit(SEEDS, shard, len(rows), parquet(pa.Table.from_pylist(rows, SEED_SCHEMA)))


def make_run(path: Path, shards: int = 3, rows: int = 5) -> Run:
    run = Run(path, RECIPE, create=True)
    for shard in range(shards):
        add_seeds(run, shard, [f"seed {shard} {row}" for row in range(rows)])
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


def ask(run: Run, scheduler: Reply | FakeScheduler | None = None, *tasks: Any, **ranks: int) -> FakeScheduler:
    """Call ``generate`` on a fake scheduler, or one that replies so, and return it."""
    scheduler = scheduler if isinstance(scheduler, FakeScheduler) else FakeScheduler(scheduler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "connect", scheduler.connect)
        generate(run, tasks or [FakeTask()], Server(), **ranks)
    return scheduler


def rows(run: Run, stage: Stage = CAPTIONS) -> list[Row]:
    return [row for shard in run.shards(stage) for row in run.table(stage, shard).to_pylist()]


def rejected(run: Run, stage: Stage = CAPTIONS) -> list[Row]:
    return [row for shard in run.shards(stage) for row in run.rejected(stage, shard).to_pylist()]


def data(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.directory(CAPTIONS).glob("*.parquet")}


def fails(text: str, n: int) -> str:
    """Rows 1 fail once, rows 3 always, the others never."""
    row = text.split()[2]
    return f"bad too_short {text}" if row == "3" or (row == "1" and n == 1) else f"A caption of {text}, answer {n}."


def test_every_item_ends_once_in_order_with_its_provenance_and_counts(run: Run) -> None:
    scheduler = ask(run, fails)
    assert [row["id"] for row in rows(run)] == [row_id(s, n) for s in range(3) for n in (0, 1, 2, 4)]
    assert len(scheduler.asked) == 3 * (1 + 2 + 1 + 3 + 1)
    second = rows(run)[1]
    assert second["caption"] == "A caption of seed 0 1, answer 2."
    assert (second["attempts"], second["prompt_tokens"], second["thinking_tokens"]) == (2, 20, 2)
    assert (second["prompt"], second["model"]) == (FakeTask.prompt.name, "fake/model")
    assert second["sampling_seed"] == sampling_seed(0, 1, 2) and second["input_hash"] == text_hash("seed 0 1")
    lost = rejected(run)[0]
    assert (lost["id"], lost["reason"], lost["attempts"]) == (row_id(0, 3), "too_short", 3)
    assert lost["raw"] == "bad too_short seed 0 3" and "seed 0 3" in lost["request"]
    record = run.record(CAPTIONS, 0)
    assert record is not None and record.rows == 4
    assert record.counts == {
        **{"accepted": 4, "rejected": {"too_short": 1}, "requests": 8, "retries": {}},
        **{"prompt_tokens": 80, "completion_tokens": 52, "thinking_tokens": 8},
    }
    assert not list(run.directory(CAPTIONS).glob("[0-9]*.jsonl"))
    assert run.facts(CAPTIONS)["identity"] == {
        **{"prompt": FakeTask.prompt.name, "prompt_sha256": FakeTask.prompt.sha256},
        **{"model": "fake/model", "model_revision": "abc"},
    }
    logged = run.sessions(CAPTIONS)[0]
    assert (logged["rows"], logged["requests"], logged["rejected"]) == (15, 24, {"too_short": 3})
    assert logged["servers"] == [{"kind": "tgi", "version": "3", "model": "fake/model"}]
    assert len(scheduler.warmed_up) == 1 and ask(run).connections == 0  # nothing is due, so no server


def test_a_refused_prompt_is_rejected_with_what_the_server_said(run: Run) -> None:
    add_seeds(run, 1, ["seed 1 0", "seed 1 a longer one"])  # the longest, with which the servers are warmed up
    ask(run, lambda text, n: RequestRejected("HTTP 403: a guardrail") if len(text) > 8 else "A caption.")
    (lost,) = rejected(run)
    assert (lost["reason"], lost["raw"], lost["attempts"]) == ("refused", "HTTP 403: a guardrail", 1)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=5) | st.sampled_from(["\r\n", "\u2028", "\0🦄"])
STOPS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 600)), max_size=6)


@settings(max_examples=40, deadline=None)
@given(stops=STOPS, count=st.integers(1, 7), capacity=st.integers(1, 6), said=TEXTS)
def test_sessions_that_end_anywhere_with_torn_journals_add_up_to_an_undisturbed_run(
    stops: list[tuple[int, int]], count: int, capacity: int, said: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeScheduler, "capacity", capacity)
        whole, broken = make_run(Path(folder) / "a", 3, count), make_run(Path(folder) / "b", 3, count)
        reply: Reply = lambda text, n: f"A {said} of {text}."  # noqa: E731
        undisturbed, sessions, again = ask(whole, reply).asked, list[FakeScheduler](), 0
        for stop, torn in [*stops, (None, 0)]:
            sessions.append(FakeScheduler(reply, stop))
            try:
                ask(broken, sessions[-1])
            except FatalServerError:
                again += capacity - 1
            for journal in broken.directory(CAPTIONS).glob("[0-9]*.jsonl"):
                content = journal.read_bytes()
                kept = content[: max(0, len(content) - torn)]
                journal.write_bytes(kept)
                again += content.count(b"\n") - kept.count(b"\n")
        asked = [request for session in sessions for request in session.asked]
        assert data(broken) == data(whole) and {row["caption"] for row in rows(whole)} == {
            reply(f"seed {shard} {row}", 1) for shard in range(3) for row in range(count)
        }
        assert set(asked) == set(undisturbed)
        assert len(asked) - len(undisturbed) <= again


def test_rows_added_changed_and_dropped_upstream_are_taken_in(run: Run) -> None:
    ask(run, fails)
    before = {row["id"]: row for row in rows(run)}
    add_seeds(run, 1, ["seed 1 0", "seed 1 other", "seed 1 2", "seed 1 3"])  # one changed, the last one gone
    add_seeds(run, 3, ["seed 3 0"])
    scheduler = ask(run, lambda text, n: f"New {text}.")
    assert {text for text, _ in scheduler.asked} == {"seed 1 other", "seed 3 0"}
    after = {row["id"]: row for row in rows(run)}
    assert after[row_id(1, 1)]["caption"] == "New seed 1 other."
    assert before.keys() - after.keys() == {row_id(1, 4)}
    changed = {row_id(1, 1), row_id(1, 4)}
    assert all(after[id] == row for id, row in before.items() if id not in changed)
    assert [row["id"] for row in rejected(run)] == [row_id(shard, 3) for shard in range(3)]


def test_retry_asks_rejected_rows_again_with_fresh_seeds(run: Run) -> None:
    first = ask(run, fails)
    before, stale = rows(run), run.file(CAPTIONS, 0, ".rejected.parquet").read_bytes()
    assert retry(run, [FakeTask()], ["loop"]) == {}
    assert retry(run, [FakeTask()], ["too_short", "loop"]) == {"captions": 3}
    second = ask(run, fails)
    assert [row["attempts"] for row in rejected(run)] == [6] * 3
    retry(run, [FakeTask()], None)
    again = ask(run, lambda text, n: "bad too_short" if n == 1 else f"Late {text}.")
    assert len(again.asked) == 6 and not set(again.asked) & {*first.asked, *second.asked}
    late = [row for row in rows(run) if row not in before]
    assert [row["id"] for row in late] == [row_id(shard, 3) for shard in range(3)]
    assert {(row["attempts"], row["prompt_tokens"]) for row in late} == {(8, 80)}
    assert len(rows(run)) == 15 and not rejected(run)
    record = run.record(CAPTIONS, 0)
    assert record is not None and record.counts["requests"] == 5 + 8
    run.file(CAPTIONS, 0, ".rejected.parquet").write_bytes(stale)  # a kill came between the record and its removal
    run.reopen(CAPTIONS, 0)
    assert ask(run).connections == 0 and len(rows(run)) == 15


def test_a_retry_that_is_killed_before_the_record_is_removed_loses_nothing(run: Run) -> None:
    ask(run, fails)
    before = data(run)

    def killed_retry() -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Run, "reopen", lambda self, stage, shard: signal.raise_signal(signal.SIGINT))
            retry(run, [FakeTask()], None)

    killed_retry()
    assert ask(run).connections == 0 and data(run) == before  # as if it had not been given
    assert not list(run.directory(CAPTIONS).glob("[0-9]*.jsonl"))
    killed_retry()
    assert retry(run, [FakeTask()], None) == {"captions": 3}
    ask(run)
    assert len(rows(run)) == 15


@pytest.mark.parametrize(("shards", "count", "asked"), [(9, 20, 50), (1, 12, 6), (1, 6, 5), (1, 3, 3)])
def test_the_first_rows_or_half_of_few_that_all_fail_alike_stop_the_stage_and_are_asked_again(
    tmp_path: Path, shards: int, count: int, asked: int
) -> None:
    run, scheduler = make_run(tmp_path / "run", shards, count), FakeScheduler(lambda text, n: "bad empty")
    scheduler.capacity = 1
    what = "no row was accepted" if asked == shards * count else f"the first {asked} rows all failed"
    with pytest.raises(StageFailed, match=rf"{what} \(empty: {asked}\).*'bad empty'.*server.thinking"):
        ask(run, scheduler)
    assert len({text for text, _ in scheduler.asked}) == asked
    ask(run, lambda text, n: "Good." if text[-2:] == " 0" else "bad empty")  # bad rows after a good one do not stop it
    assert len(rows(run)) == shards and len(rejected(run)) == shards * (count - 1)
    assert {row["attempts"] for row in rejected(run)[: asked - shards]} == {6}


def test_a_stage_without_an_accepted_row_fails_and_goes_on_after_a_fix(run: Run) -> None:
    with pytest.raises(StageFailed, match=r"no row was accepted \(loop: 6, too_short: 9\)"):
        ask(run, lambda text, n: f"bad {'loop' if text[-1] in '01' else 'too_short'}")
    ask(run)
    assert len(rows(run)) == 15


def test_two_stages_share_one_pool_and_no_shard_waits_for_another(run: Run) -> None:
    ask(run, fails)
    slow = asyncio.Event()

    class Slow(FakeScheduler):
        async def ask(self, request: Request, stats: RequestStats) -> Answer:
            if not self.asked:
                self.asked.append(("slow", 0))
                await asyncio.wait_for(slow.wait(), 20)  # until all others are answered
            answer = await super().ask(request, stats)
            if len(self.asked) == 2 * 12:
                slow.set()
            return answer

    tasks = [FakeTask(INSTRUCTIONS[task]) for task in ("multiple_choice", "question_answering")]
    ask(run, Slow(), *tasks)
    assert len(rows(run, tasks[0].stage)) == len(rows(run, tasks[1].stage)) == 12
    assert rows(run, tasks[0].stage)[0]["grounded"] == [1.0, 0.5]
    assert [session_["rows"] for task in tasks for session_ in run.sessions(task.stage)] == [12, 12]


def test_another_model_is_refused_before_anything_is_asked(run: Run) -> None:
    with pytest.raises(FatalServerError):
        ask(run, FakeScheduler(stop_after=3))
    other = FakeScheduler()
    other.infos = [SimpleNamespace(kind="vllm", version="1", model_id="b", model_revision=None)]
    with pytest.raises(RunError, match="model: 'fake/model' -> 'b'"):
        ask(run, other)
    assert not other.asked
    other.infos = [SimpleNamespace(kind="vllm", version="1", model_id="unknown", model_revision=None)]
    assert ask(run, other).asked and run.facts(CAPTIONS)["identity"]["model_revision"] == "abc"  # another server


def test_shards_of_other_processes_are_left_to_them(run: Run) -> None:
    with run.claim(CAPTIONS, 1):
        ask(run)
    assert run.shards(CAPTIONS) == [0, 2] and run.due(CAPTIONS) == [1]
    add_seeds(run, 3, ["seed 3 0"])
    ask(run, rank=0, world_size=2)
    assert run.due(CAPTIONS) == [1, 3]
    ask(run, rank=1, world_size=2)  # its shards, whatever other ranks have already finished
    assert run.due(CAPTIONS) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("finished") / "run", 3, 5)
    ask(run, fails)
    return run


@settings(max_examples=50, deadline=None)
@given(drawn=st.data())
def test_any_files_deleted_or_cut_are_made_again_by_the_same_command(finished: Run, drawn: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(shutil.copytree(finished.path, Path(folder) / "run")))
        files = sorted(path for path in run.directory(CAPTIONS).iterdir() if path.suffix != ".lock")
        for path in drawn.draw(st.lists(st.sampled_from(files), unique=True), label="deleted"):
            path.unlink()
        left = [path for path in files if path.suffix == ".parquet" and path.exists()]
        for path in drawn.draw(st.lists(st.sampled_from(left), unique=True) if left else st.just([]), label="cut"):
            path.write_bytes(path.read_bytes()[:-9])
            run.file(CAPTIONS, int(path.name[:5]), ".json").unlink(missing_ok=True)  # as ``verify --fix`` does
        ask(run, fails)
        assert data(run) == data(finished)
        for shard in range(3):
            record, expected = run.record(CAPTIONS, shard), finished.record(CAPTIONS, shard)
            assert record and expected and record.files == expected.files


def line(number: int, **more: Any) -> dict[str, Any]:
    return {"row": {"id": f"{number:010d}", "input_hash": number, **more}}


@pytest.mark.parametrize("bad", [b"", b'{"row": {"id"', b'{"row": {}}', b"[]", b"\xff", b'{"again": 7}'], ids=repr)
def test_a_damaged_line_is_refused_with_its_number_and_left_as_it_is(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "00000.jsonl"
    content = b"\n".join([json.dumps(line(1)).encode(), bad, json.dumps(line(2)).encode(), b""])
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{path}, line 2 is damaged .* Delete that line"):
        Journal(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("more", [0, 1, 99])
def test_a_full_disk_leaves_no_half_line_and_loses_none(tmp_path: Path, more: int) -> None:
    path, row = tmp_path / "00000.jsonl", {"id": "10", "input_hash": 10, "raw": "x" * 60}
    journal, (soft, hard) = Journal(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (8 * len(json.dumps({"row": row}, separators=(",", ":")) + "\n") + more, hard)
    )
    try:
        for number in range(10, 18):
            journal.append({"row": row | {"input_hash": number}})
        for _ in range(3):
            with pytest.raises(RunError, match=f"cannot write {path}: .*give the same command again"):
                journal.append({"row": row})
            assert path.read_bytes().endswith(b"}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(line(99))
    journal.close()
    assert [row["input_hash"] for row in Journal(path).rows()] == [*range(10, 18), 99]
