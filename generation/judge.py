"""A second model checks what the first wrote; what it does not confirm is dropped, and asked again if need be.

One request asks about one item: all items of a caption share the beginning of their prompt, which servers cache. An
item is known by its text (``input_hash``), so that dropping others, or asking again, never has one judged twice.
Verdicts on items that are gone stay in the table.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .checks.items import QA, read_object
from .config import Judge, Server
from .engine import Item, generate
from .engine.journal import UnfinishedShard
from .errors import RunError
from .files import parquet, read_table
from .instructions import conversation, items_of, make_instructions, selection_inputs
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

    One vote confirms. Whatever is not confirmed is asked again, its answers in another order: two votes of three
    decide, so that a judge who errs once in twenty times loses one good item in two hundred.
    """

    def __init__(self, run: Run, source: Stage, judge: Judge) -> None:
        self.source, self.stage = source, _STAGES[source.name]
        self.prompt = load_prompt(judge.prompt + ("_captions" if source is CAPTIONS else ""))
        self.attempts = max(_MIN_ATTEMPTS, run.recipe.attempts)
        self.extra: Mapping[str, str] = {}
        self._asked: defaultdict[str, list[int]] = defaultdict(list)  # attempts so far, by item

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return what is to be judged of a shard, and what was dropped from it earlier: those verdicts stay."""
        captions, known = _captions(run, shard), _verdicts(run, self.stage, shard)
        found: list[Item] = []
        for row in run.table(self.source, shard).to_pylist():
            judged = known[row["id"]]
            ids = {hash: id for hash, (id, _) in judged.items()}
            for qa in _questions(row):
                hash = _item_hash(captions[row["id"]], qa)
                free = [f"{row['id']}/{number}" for number in range(len(ids) + 1)] if "task" in row else [row["id"]]
                ids.setdefault(hash, next((id for id in free if id not in ids.values()), free[0]))
                found.append(Item(ids[hash], hash, qa | {"caption": captions[row["id"]]}))
                judged.pop(hash, None)
        return found + [Item(id, hash, {}) for judged in known.values() for hash, (id, _) in judged.items()]

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request for one vote on an item, its answers shuffled once more."""
        shown = self._shown(item, attempt)
        self._asked[item.id].append(attempt)
        answers = "\n".join(f"{letter}: {text}" for letter, (_, text) in shown.items())
        values = {"caption": item.values["caption"], "question": item.values["Question"], "answers": answers}
        schema = json.loads(json.dumps(self.prompt.schema))
        schema["properties"]["Right"] |= {"items": {"enum": list(shown)}, "maxItems": len(shown)}
        seed = stable_hash("judge", item.input_hash, attempt) % (2**31 - 1) + 1
        return Request(self.prompt.messages(values), self.prompt.sampling, seed, schema)

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the verdict on an item once the votes decide, and the letters named, as the conversation has them."""
        attempts = self._asked[item.id][-len(answers) :]
        votes = [self._vote(item, answer.text, attempt) for answer, attempt in zip(answers, attempts, strict=True)]
        given = item.values["Answer"] if "Options" in item.values else "A"
        verdicts = [
            None if right is None
            else CONFIRMED if right == [given]
            else "unsupported" if not right
            else "two_right" if given in right
            else "wrong_letter"
            for right in votes
        ]  # fmt: skip
        found = _decided(verdicts, votes)
        if not isinstance(found, str):
            del self._asked[item.id]
        return found

    def _vote(self, item: Item, text: str, attempt: int) -> list[str] | None:
        """Return the letters of the conversation that an answer names as right, or None if it cannot be read."""
        shown, named = self._shown(item, attempt), (read_object(text) or {}).get("Right")
        if not isinstance(named, list) or not all(letter in shown for letter in map(str, named)):
            return None
        return sorted({shown[letter][0] for letter in named})

    def _shown(self, item: Item, attempt: int) -> dict[str, tuple[str, str]]:
        """Return what each letter of a request stands for: a letter of the conversation, and its text."""
        options = item.values.get("Options") or {"A": item.values["Answer"]}
        order = sorted(options, key=lambda letter: stable_hash("judge", item.input_hash, attempt, letter))
        return {new: (old, options[old]) for new, old in zip(options, order, strict=True)}


def _decided(verdicts: list[str | None], votes: Sequence[Any]) -> Row | str:
    """Return the columns of a verdict if the votes decide, else the reason to ask once more."""
    valid = [verdict for verdict in verdicts if verdict]
    against = [verdict for verdict in valid if verdict != CONFIRMED]
    if len(against) >= 2:
        verdict = Counter(against).most_common(1)[0][0]
    elif valid[:1] == [CONFIRMED] or len(valid) - len(against) >= 2:
        verdict = CONFIRMED
    else:
        return "undecided" if verdicts[-1] else "schema"
    return {"verdict": verdict, "votes": json.dumps(votes)}


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

    Raises:
        RunError: the recipe has no ``judge``; others as in ``make_judgements``.
    """
    if (judge := run.recipe.judge) is None:
        raise RunError(f"{run.path}: the recipe has no section 'judge'; add `judge: {{}}` to it")
    run.require(CAPTIONS)
    _judge(run, [JudgeTask(run, CAPTIONS, judge)], judge, rank, world_size)


def judged_share(run: Run, task: str, shard: int) -> dict[str, float]:
    """Return the share of confirmed items of each conversation of a shard that was judged."""
    captions, known, shares = _captions(run, shard), _verdicts(run, JUDGEMENTS[task], shard), {}
    for row in run.table(INSTRUCTIONS[task], shard, ["id", "conversations"]).to_pylist() if known else []:
        hashes = [_item_hash(captions[row["id"]], qa) for qa in items_of(row["conversations"])]
        judged = [known[row["id"]][hash][1] == CONFIRMED for hash in hashes if hash in known[row["id"]]]
        if judged:
            shares[row["id"]] = sum(judged) / len(judged)
    return shares


def _judge(run: Run, tasks: Sequence[JudgeTask], judge: Judge, rank: int, world_size: int) -> bool:
    """Judge what is due and drop what is not confirmed; return whether a shard was changed."""
    server: Server = run.recipe.server
    if judge.endpoints:
        server = server.model_copy(update={"endpoints": judge.endpoints, "kind": "auto", "model": None})
    if judge.model:
        server = server.model_copy(update={"model": judge.model})
    generate(run, tasks, server, rank, world_size)
    changed = False
    for task in tasks if judge.drop else []:
        for shard in run.shards(task.stage):
            if shard % world_size == rank and not run.is_due(task.stage, shard):
                changed |= _drop(run, task, shard)
    return changed


def _drop(run: Run, task: JudgeTask, shard: int) -> bool:
    """Rewrite a judged shard without what was not confirmed; return whether it is now another, or due."""
    with run.claim(task.source, shard, _WAIT_S) as mine:
        record = run.record(task.source, shard)
        if not mine or record is None:
            raise RunError(f"{run.file(task.source, shard)} is held by another process; wait for its end")
        table, captions = run.table(task.source, shard), _captions(run, shard)
        old, known = table.to_pylist(), _verdicts(run, task.stage, shard)
        rows = [_left(run, row, captions[row["id"]], known[row["id"]]) for row in old]
        kept = [row for row in rows if "reason" not in row]
        rejected = _rows(run.rejected(task.source, shard)) + [row for row in rows if "reason" in row]
        if rows != old:
            counts = {"accepted": len(kept), "rejected": dict(Counter(row["reason"] for row in rejected))}
            own = run.inputs(task.source, shard) or {}
            extra = {key: value for key, value in record.inputs.items() if key not in own}
            aside = pa.Table.from_pylist(sorted(rejected, key=lambda row: str(row["id"])), REJECTED_SCHEMA)
            left = parquet(pa.Table.from_pylist(kept, table.schema))
            run.commit(task.source, shard, len(kept), left, aside, extra, record.counts | counts)
        again = any(row["reason"] == AGAIN for row in rejected)
        if again:
            UnfinishedShard(run, task.source, shard).reopen_rejected({AGAIN})
        return rows != old or again


def _left(run: Run, row: Row, caption: str, known: Mapping[int, tuple[str, str]]) -> Row:
    """Return what is left of a row: the row, a smaller one, or a rejected one. Items without verdict are kept."""
    items = _questions(row)
    verdicts = [known.get(_item_hash(caption, qa), ("", CONFIRMED))[1] for qa in items]
    kept = [place for place, verdict in enumerate(verdicts) if verdict == CONFIRMED]
    if len(kept) == len(items):
        return row
    if "seed" in row:
        return row | {"reason": FINAL, "raw": caption, "request": None}
    if len(kept) < run.recipe.task(row["task"]).items[0]:
        reason = AGAIN if row["attempts"] < run.recipe.attempts else FINAL
        return row | {"reason": reason, "raw": json.dumps(row["conversations"], ensure_ascii=False), "request": None}
    lost = [f"judge_{verdict}" for verdict in verdicts if verdict != CONFIRMED]
    columns = {name: [row[name][place] for place in kept] for name in ("question_types", "grounded")}
    turns = conversation([items[place] for place in kept], row["task"], row["id"])
    return row | columns | {"conversations": turns, "dropped": [*row["dropped"], *lost]}


def _questions(row: Row) -> list[QA]:
    """Return what is judged of a row: the items of a conversation, or whether its seed is true of a caption."""
    return [{"Question": "", "Answer": row["seed"]}] if "seed" in row else items_of(row["conversations"])


def _captions(run: Run, shard: int) -> dict[str, str]:
    return {row["id"]: row["caption"] for row in run.table(CAPTIONS, shard, ["id", "caption"]).to_pylist()}


def _item_hash(caption: str, qa: QA) -> int:
    return text_hash(caption, qa["Question"], *qa.get("Options", {}).values(), qa["Answer"])


def _verdicts(run: Run, stage: Stage, shard: int) -> defaultdict[str, dict[int, tuple[str, str]]]:
    """Return the id and verdict of all that was judged, finished or not, by the id of its row and its hash."""
    found: defaultdict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
    path = run.file(stage, shard)
    for row in _rows(read_table(path, ["id", "verdict", "input_hash"]) if path.is_file() else None):
        found[row["id"].partition("/")[0]][row["input_hash"]] = row["id"], row["verdict"]
    return found


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return table.to_pylist() if table is not None else []
