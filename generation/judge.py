"""A second model checks what the first wrote; what it does not confirm is dropped, and asked again if need be.

One request asks about one item: all items of a caption share the beginning of their prompt, which servers cache. An
item is known by its text (``input_hash``), so that dropping others, or asking again, never has one judged twice.
Verdicts on items that are gone stay in the table.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from .captions import CaptionTask, make_captions
from .checks.items import QA, read_object
from .config import Judge
from .engine import GenerationTask, Item, generate, retry
from .engine.journal import UnfinishedShard
from .errors import RunError
from .files import parquet, read_table
from .instructions import InstructionTask, conversation, items_of, make_instructions, selection_inputs
from .logs import say
from .prompts import load_prompt
from .rows import REJECTED_SCHEMA, Row, stable_hash, text_hash
from .stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, TASKS, Stage
from .store import Run
from .tgi.protocol import Answer, Request

CONFIRMED = "confirmed"
AGAIN, FINAL = "judge", "judge_final"  # reasons of rows with too few confirmed items; the first are asked again
_STAGES = {CAPTIONS.name: CAPTION_JUDGEMENTS} | {INSTRUCTIONS[task].name: JUDGEMENTS[task] for task in TASKS}
_MIN_ATTEMPTS = 4  # three votes, and one answer that cannot be read
_WAIT_S = 60.0  # for another process that holds a shard


class JudgeTask:
    """What the engine asks about each item of the conversations, or each caption: which of its answers are right.

    A first vote for the one right letter of four confirms. All else is asked again, the answers in another order, and
    two votes of three decide: a judge who errs once in twenty times loses one good item in two hundred.
    """

    def __init__(self, run: Run, source: Stage, judge: Judge) -> None:
        self.source, self.stage = source, _STAGES[source.name]
        self.prompt = load_prompt(judge.prompt + ("_captions" if source is CAPTIONS else ""))
        self.attempts = max(_MIN_ATTEMPTS, run.recipe.attempts)
        self.extra: Mapping[str, str] = {}

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return what is to be judged of a shard, and what was dropped from it earlier: those verdicts stay."""
        found = dict[str, Item]()
        for row, parts in _judged(run, self.source, shard):
            for hash, values in parts:
                id = f"{row['id']}/{hash}"
                found[id] = Item(id, hash, values | {"shown": []})
        gone = (Item(row["id"], row["input_hash"], {}) for row in _verdicts(run, self.stage, shard))
        return [*found.values(), *(item for item in gone if item.id not in found)]

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request for one vote on an item, its answers shuffled once more."""
        options = item.values.get("Options") or {"A": item.values["Answer"]}
        order = sorted(options, key=lambda letter: stable_hash("judge", item.input_hash, attempt, letter))
        shown = dict(zip(options, order, strict=True))
        item.values["shown"].append(shown)
        answers = "\n".join(f"{new}: {options[old]}" for new, old in shown.items())
        values = {"caption": item.values["caption"], "question": item.values["Question"], "answers": answers}
        schema = json.loads(json.dumps(self.prompt.schema))
        schema["properties"]["Right"] |= {"items": {"enum": list(shown)}, "maxItems": len(shown)}
        seed = stable_hash("judge", item.input_hash, attempt) % (2**31 - 1) + 1
        return Request(self.prompt.messages(values), self.prompt.sampling, seed, schema)

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the verdict on an item once the votes decide, and the letters named, as the conversation has them."""
        given = item.values["Answer"] if "Options" in item.values else "A"
        votes: list[list[str] | None] = []
        for answer, shown in zip(answers, item.values["shown"][-len(answers) :], strict=True):
            match read_object(answer.text):
                case {"Right": list(named)} if shown.keys() >= set(map(str, named)):
                    votes.append(sorted({shown[letter] for letter in named}))
                case _:
                    votes.append(None)
        verdicts = [
            CONFIRMED if right == [given]
            else "unsupported" if not right
            else "two_right" if given in right
            else "wrong_letter"
            for right in votes if right is not None
        ]  # fmt: skip
        against = [verdict for verdict in verdicts if verdict != CONFIRMED]
        if len(against) >= 2:
            decided = Counter(against).most_common(1)[0][0]
        elif verdicts.count(CONFIRMED) >= 2 or ("Options" in item.values and verdicts[:1] == [CONFIRMED]):
            decided = CONFIRMED
        else:
            return "schema" if votes[-1] is None else "undecided"
        return {"verdict": decided, "votes": json.dumps(votes)}


def make_judgements(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Have all conversations judged and, with ``judge.drop``, drop what is not confirmed; nothing without ``judge``.

    A conversation with too few confirmed items is asked again until the recipe's ``attempts`` are used up. Arguments
    and errors as in ``engine.generate``; also RunError if the conversations are not complete.
    """
    if (judge := run.recipe.judge) is None:
        return
    tasks = [JudgeTask(run, stage, judge) for stage in INSTRUCTIONS.values()]
    for name in TASKS if world_size == 1 else ():  # other processes may be asking again
        run.require(INSTRUCTIONS[name], selection_inputs(run, name))
    while _judge(run, tasks, judge, rank, world_size):
        make_instructions(run, rank, world_size)


def judge_captions(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Have all captions judged (before stage 2) and, with ``judge.drop``, drop those that are not confirmed.

    A RunError says that the recipe has no ``judge``; other errors as in ``make_judgements``.
    """
    if (judge := run.recipe.judge) is None:
        raise RunError(f"{run.path}: the recipe has no section 'judge'; add `judge: {{}}` to it")
    run.require(CAPTIONS)
    _judge(run, [JudgeTask(run, CAPTIONS, judge)], judge, rank, world_size)


def retry_rejected(run: Run, reasons: Collection[str] | None = None) -> dict[str, int]:
    """Ask the rejected rows of all stages (of these reasons; None: all) again, and have judged what was judged before.

    Return how many rows, by stage. Errors as in ``engine.generate``.
    """
    tasks: list[GenerationTask] = [*(InstructionTask(run, name) for name in TASKS), CaptionTask(run)]
    if judge := run.recipe.judge:
        tasks = [JudgeTask(run, stage, judge) for stage in (*INSTRUCTIONS.values(), CAPTIONS)] + tasks
    # The last stage is first: once a shard is reopened, those that were made from it are not looked at.
    found = retry(run, [task for task in tasks if run.directory(task.stage).is_dir()], reasons)
    for stage, rows in found.items():
        say(f"{stage}: {rows} rejected rows are asked again")
    if not found:
        say("No rejected row" + (f" has the reason {' or '.join(reasons)}" if reasons else "s"))
    make_captions(run)
    if run.directory(CAPTION_JUDGEMENTS).is_dir():
        judge_captions(run)
    make_instructions(run)
    make_judgements(run)
    return found


def judged_share(run: Run, task: str, shard: int) -> dict[str, float]:
    """Return the share of confirmed items of each conversation of a shard that was judged."""
    known = {row["input_hash"]: row["verdict"] == CONFIRMED for row in _verdicts(run, JUDGEMENTS[task], shard)}
    shares = {}
    for row, parts in _judged(run, INSTRUCTIONS[task], shard) if known else ():
        if judged := [known[hash] for hash, _ in parts if hash in known]:
            shares[row["id"]] = sum(judged) / len(judged)
    return shares


def _judge(run: Run, tasks: Sequence[JudgeTask], judge: Judge, rank: int, world_size: int) -> bool:
    """Judge what is due and drop what is not confirmed; return whether a shard was changed."""
    own = {"endpoints": judge.endpoints, "kind": "auto", "model": None} if judge.endpoints else {}
    server = run.recipe.server.model_copy(update=own | ({"model": judge.model} if judge.model else {}))
    generate(run, tasks, server, rank, world_size)
    changed = False
    for task in tasks if judge.drop else []:
        for shard in run.shards(task.stage):
            if shard % world_size == rank and not run.is_due(task.stage, shard):
                changed |= _drop(run, task, shard)
    return changed


def _drop(run: Run, task: JudgeTask, shard: int) -> bool:
    """Rewrite a judged shard without what was not confirmed; return whether it is now another, or due."""
    source = task.source
    with run.claim(source, shard, _WAIT_S) as mine:
        record, before = run.record(source, shard), run.rejected(source, shard)
        if not mine or record is None:
            raise RunError(f"{run.file(source, shard)} is held by another process; wait for its end")
        known = {row["input_hash"]: row["verdict"] for row in _verdicts(run, task.stage, shard)}
        old = list(_judged(run, source, shard))
        rows = [_left(run, row, [(known.get(hash, CONFIRMED), qa) for hash, qa in parts]) for row, parts in old]
        kept = [row for row in rows if "reason" not in row]
        rejected = [*(before.to_pylist() if before else ()), *(row for row in rows if "reason" in row)]
        changed = rows != [row for row, _ in old]
        if changed:
            counts = {"accepted": len(kept), "rejected": dict(Counter(row["reason"] for row in rejected))}
            counts |= {"dropped": dict(Counter(reason for row in kept for reason in row.get("dropped", ())))}
            own = run.inputs(source, shard) or {}
            extra = {key: value for key, value in record.inputs.items() if key not in own}
            aside = pa.Table.from_pylist(sorted(rejected, key=lambda row: str(row["id"])), REJECTED_SCHEMA)
            left = parquet(pa.Table.from_pylist(kept, source.schema))
            run.commit(source, shard, len(kept), left, aside, extra, record.counts | counts)
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


def _judged(run: Run, source: Stage, shard: int) -> Iterator[tuple[Row, list[tuple[int, QA]]]]:
    """Yield each row of a shard, and what is judged of it with its hash: a caption's seed, or the row's questions."""
    captions = dict(zip(*run.table(CAPTIONS, shard, ["id", "caption"]).to_pydict().values(), strict=True))
    for row in run.table(source, shard).to_pylist():
        caption = captions[row["id"]]
        if source is CAPTIONS:
            hashed = [(text_hash(row["seed"], caption), {"Question": "", "Answer": row["seed"]})]
        else:
            items = items_of(row["conversations"])
            hashed = [
                (text_hash(caption, qa["Question"], *qa.get("Options", {}).values(), qa["Answer"]), qa) for qa in items
            ]
        yield row, [(hash, qa | {"caption": caption}) for hash, qa in hashed]


def _verdicts(run: Run, stage: Stage, shard: int) -> list[Row]:
    """Return id, hash and verdict of all that was judged, also while more is to be judged."""
    path = run.verified(stage, shard) if run.record(stage, shard) else run.file(stage, shard)
    rows: list[Row] = read_table(path, ["id", "verdict", "input_hash"]).to_pylist() if path.is_file() else []
    return rows
