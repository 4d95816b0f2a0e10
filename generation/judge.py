"""A second model checks what the first wrote; what it does not confirm is dropped, and asked again if need be. One
request asks about one item: all of a caption share the beginning of their prompt, which servers cache. An item is
known by its text (``input_hash``), so that nothing is judged twice; verdicts on items that are gone stay."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from . import stages
from .captions import CaptionTask, make_captions
from .checks.items import QA, read_object
from .config import Judge, Server
from .engine import GenerationTask, Item, UnfinishedShard, generate, retry
from .errors import RunError
from .instructions import InstructionTask, conversation, items_of, make_instructions, selection_inputs
from .limits import LOCK_WAIT_S
from .logs import say
from .prompts import load_prompt
from .stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, Row, Stage, stable_hash, text_hash
from .store import Run, parquet, read_table
from .tgi.client import Answer, Request

CONFIRMED = "confirmed"
AGAIN, FINAL = "judge", "judge_final"  # reasons of rows with too few confirmed items; the first are asked again
_MIN_ATTEMPTS = 4  # three votes, and one answer that cannot be read


class JudgeTask:
    """What the engine asks about each item of the conversations, or each caption: which of its answers are right. A
    first vote for the one right letter of four confirms. All else is asked again, the answers in another order, and
    two votes of three decide: a judge who errs once in twenty times loses one good item in two hundred."""

    def __init__(self, run: Run, stage: Stage, judge: Judge) -> None:
        assert stage.source is not None
        self.source, self.stage = stage.source, stage
        self.extra: Mapping[str, str] = {}
        self.prompt = load_prompt(judge.prompt + ("_captions" if stage is CAPTION_JUDGEMENTS else ""))
        self.attempts = max(_MIN_ATTEMPTS, run.recipe.attempts)

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return what is to be judged of a shard, and what was dropped from it earlier: those verdicts stay."""
        parts = (part for _, own in _judged(run, self.source, shard) for part in own)
        found = {id: Item(id, hash, values | {"shown": []}) for id, hash, values in parts}
        gone = (Item(id, hash, {}) for id, (hash, _) in _verdicts(run, self.stage, shard).items() if id not in found)
        return [*found.values(), *gone]

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request for one vote on an item, its answers shuffled once more."""
        options = item.values.get("Options") or {"A": item.values["Answer"]}
        order = sorted(options, key=lambda letter: stable_hash("judge", item.input_hash, attempt, letter))
        item.values["shown"].append(shown := dict(zip(options, order, strict=True)))
        answers = "\n".join(f"{new}: {options[old]}" for new, old in shown.items())
        values = {"caption": item.values["caption"], "question": item.values["Question"], "answers": answers}
        schema = json.loads(json.dumps(self.prompt.json_schema))
        schema["properties"]["Right"] |= {"items": {"enum": list(shown)}, "maxItems": len(shown)}
        seed = stable_hash("judge", item.input_hash, attempt) % (2**31 - 1) + 1
        return Request(self.prompt.messages(values), self.prompt.sampling, seed, schema)

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the verdict on an item once the votes decide, and the letters named, as the conversation has them."""
        given = item.values["Answer"] if "Options" in item.values else "A"
        votes, verdicts = list[list[str] | None](), list[str]()
        for answer, shown in zip(answers, item.values["shown"][-len(answers) :], strict=True):
            named = (read_object(answer.text) or {}).get("Right")
            if not isinstance(named, list) or not shown.keys() >= set(map(str, named)):
                votes.append(None)
                continue
            right = sorted({shown[letter] for letter in named})
            other = "two_right" if given in right else "wrong_letter" if right else "unsupported"
            votes.append(right)
            verdicts.append(CONFIRMED if right == [given] else other)
        against = [verdict for verdict in verdicts if verdict != CONFIRMED]
        if len(against) >= 2:
            return {"verdict": Counter(against).most_common(1)[0][0], "votes": json.dumps(votes)}
        if verdicts.count(CONFIRMED) >= 2 or ("Options" in item.values and verdicts[:1] == [CONFIRMED]):
            return {"verdict": CONFIRMED, "votes": json.dumps(votes)}
        return "schema" if votes[-1] is None else "undecided"


def make_judgements(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Have all conversations judged and, with ``judge.drop``, drop what is not confirmed; nothing without ``judge``.

    A conversation with too few confirmed items is asked again until the recipe's ``attempts`` are used up. Arguments
    and errors as in ``engine.generate``; also RunError if the conversations are not complete.
    """
    for name in stages.TASKS if run.recipe.judge and world_size == 1 else ():  # other processes may be asking again
        run.require(INSTRUCTIONS[name], selection_inputs(run, name))
    while run.recipe.judge and _judge(run, list(JUDGEMENTS.values()), run.recipe.judge, rank, world_size):
        make_instructions(run, rank, world_size)


def judge_captions(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Have all captions judged (before stage 2) and, with ``judge.drop``, drop those that are not confirmed. A
    RunError says that the recipe has no ``judge``; other errors as in ``make_judgements``."""
    if (judge := run.recipe.judge) is None:
        raise RunError(f"{run.path}: the recipe has no section 'judge'; add `judge: {{}}` to it")
    if "imported" in run.facts(CAPTIONS).get("identity", {}):
        raise RunError(f"{run.path} was imported: there are no seeds to check its captions against")
    run.require(CAPTIONS)
    _judge(run, [CAPTION_JUDGEMENTS], judge, rank, world_size)


def retry_rejected(run: Run, reasons: Collection[str] | None = None) -> dict[str, int]:
    """Ask rejected rows (of these reasons; None: all) again, and have them judged; return how many, by stage. Errors
    as in ``engine.generate``."""
    if "imported" in run.facts(CAPTIONS).get("identity", {}):
        raise RunError(f"{run.path} was imported, not generated; `import-original --keep-defects` keeps rejected rows")
    tasks: list[GenerationTask] = [*(InstructionTask(run, name) for name in stages.TASKS), CaptionTask(run)]
    if judge := run.recipe.judge:
        tasks = [JudgeTask(run, stage, judge) for stage in (*JUDGEMENTS.values(), CAPTION_JUDGEMENTS)] + tasks
    # The last stage is first: once a shard is reopened, those that were made from it are not looked at.
    found = retry(run, [task for task in tasks if run.directory(task.stage).is_dir()], reasons)
    none = "No rejected row" + (f" has the reason {' or '.join(reasons)}" if reasons else "s")
    say("\n".join(f"{stage}: {rows} rejected rows are asked again" for stage, rows in found.items()) or none)
    make_captions(run)
    if run.directory(CAPTION_JUDGEMENTS).is_dir():
        judge_captions(run)
    make_instructions(run)
    make_judgements(run)
    return found


def judge_server(server: Server, judge: Judge) -> Server:
    """Return where the judge's requests go: to its own endpoints, or else to those of ``server``."""
    own = {"endpoints": judge.endpoints, "kind": "auto", "model": None} if judge.endpoints else {}
    return server.model_copy(update=own | ({"model": judge.model} if judge.model else {}))


def judged_share(run: Run, task: str, shard: int) -> dict[str, float]:
    """Return the share of confirmed items of each conversation of a shard that was judged."""
    known, shares = _verdicts(run, JUDGEMENTS[task], shard), dict[str, float]()
    for row, parts in _judged(run, INSTRUCTIONS[task], shard) if known else ():
        if judged := [known[id][1] == CONFIRMED for id, *_ in parts if id in known]:
            shares[row["id"]] = sum(judged) / len(judged)
    return shares


def _judge(run: Run, stages: Sequence[Stage], judge: Judge, rank: int, world_size: int) -> bool:
    """Judge what is due and drop what is not confirmed; return whether a shard was changed."""
    server = judge_server(run.recipe.server, judge)
    generate(run, [JudgeTask(run, stage, judge) for stage in stages], server, rank, world_size)
    own_shards = [(stage, shard) for stage in stages for shard in run.shards(stage) if shard % world_size == rank]
    changed = [judge.drop and not run.is_due(*one) and _drop(run, *one) for one in own_shards]
    return any(changed)


def _drop(run: Run, stage: Stage, shard: int) -> bool:
    """Rewrite a judged shard without what was not confirmed; return whether it is now another, or due."""
    source = stage.source
    assert source is not None
    with run.claim(source, shard, LOCK_WAIT_S) as mine:
        record, before = run.record(source, shard), run.rejected(source, shard)
        if not mine or record is None:
            raise RunError(f"{run.file(source, shard)} is held by another process; wait for its end")
        known, rows, changed = _verdicts(run, stage, shard), list[Row](), False
        for row, parts in _judged(run, source, shard):
            rows.append(_left(run, row, [(known[id][1] if id in known else CONFIRMED, qa) for id, _, qa in parts]))
            changed |= rows[-1] != row
        kept = [row for row in rows if "reason" not in row]
        rejected = [*before.to_pylist(), *(row for row in rows if "reason" in row)]
        if changed:
            lost = Counter(row["reason"] for row in rejected)
            dropped = Counter(code for row in kept for code in row.get("dropped", ()))
            counts = {"accepted": len(kept), "rejected": dict(lost), "dropped": dict(dropped)}
            aside = pa.Table.from_pylist(sorted(rejected, key=lambda row: str(row["id"])), stages.REJECTED_SCHEMA)
            left = parquet(pa.Table.from_pylist(kept, source.schema))
            run.commit(source, shard, len(kept), left, aside, record.inputs, record.counts | counts)
        if again := any(row["reason"] == AGAIN for row in rejected):
            UnfinishedShard(run, source, shard).reopen_rejected({AGAIN})
        return changed or again


def _left(run: Run, row: Row, judged: list[tuple[str, QA]]) -> Row:
    """Return what is left of a row, given the verdicts on its items: the row, a smaller one, or a rejected one."""
    kept = [place for place, (verdict, _) in enumerate(judged) if verdict == CONFIRMED]
    if len(kept) == len(judged):
        return row
    if "seed" in row:
        return row | {"reason": FINAL, "raw": row["caption"], "request": None}
    if len(kept) < run.recipe.task(row["task"]).items[0]:
        reason = AGAIN if row["attempts"] < run.recipe.attempts else FINAL
        return row | {"reason": reason, "raw": json.dumps(row["conversations"], ensure_ascii=False), "request": None}
    lost = [f"judge_{verdict}" for verdict, _ in judged if verdict != CONFIRMED]
    columns = {name: [row[name][place] for place in kept] for name in ("question_types", "grounded")}
    turns = conversation([judged[place][1] for place in kept], row["task"], row["id"])
    return row | columns | {"conversations": turns, "dropped": [*row["dropped"], *lost]}


def _judged(run: Run, source: Stage, shard: int) -> Iterator[tuple[Row, list[tuple[str, int, QA]]]]:
    """Yield each row of a shard, and what is judged of it (id, hash, values): a caption's seed, or the row's items."""
    captions = dict(zip(*run.table(CAPTIONS, shard, ["id", "caption"]).to_pydict().values(), strict=True))
    for row in run.table(source, shard).to_pylist():
        caption, parts = captions[row["id"]], list[tuple[str, int, QA]]()
        for qa in [{"Question": "", "Answer": row["seed"]}] if "seed" in row else items_of(row["conversations"]):
            texts = (caption, qa["Question"], *qa.get("Options", {}).values(), qa["Answer"])
            hash = text_hash(*((row["seed"], caption) if "seed" in row else texts))
            parts.append((f"{row['id']}/{hash}", hash, qa | {"caption": caption}))
        yield row, parts


def _verdicts(run: Run, stage: Stage, shard: int) -> dict[str, tuple[int, str]]:
    """Return hash and verdict of all that was judged, by id, also while more is to be judged."""
    path = run.verified(stage, shard) if run.record(stage, shard) else run.file(stage, shard)
    rows = read_table(path, ["id", "verdict", "input_hash"]).to_pylist() if path.is_file() else []
    return {row["id"]: (row["input_hash"], row["verdict"]) for row in rows}
