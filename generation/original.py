"""Make a run of the JSON files that the authors released (Yu2020/Unicorn on the Hub), instead of generating data.

Each file is one JSON list of rows in LLaVA's format:

    {"id": "0010278167", "caption": "...", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}

In the pre-training file the only answer is the caption; in an instruction file ``id`` is that of the caption. Which
file is which is seen from its rows. The release names no task: options make it multiple choice, answers of 20 words or
more on average complex reasoning (our bound).
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from .checks.dense import caption_fault
from .checks.items import LETTERS, Scene, item_fault
from .config import Recipe
from .errors import SeedError
from .files import parquet, sha256
from .logs import Progress
from .rows import REJECTED_SCHEMA, Row, row_id, text_hash
from .stages import CAPTIONS, INSTRUCTIONS, SEEDS, Stage
from .store import Run

SOURCE = "unicorn_original"
LICENSE = "not given; see the release, Yu2020/Unicorn"
MODEL = "Qwen2.5-72B-Instruct (as its authors say)"
SHARD_ROWS = 10_000
LONG_ANSWER_WORDS = 20.0
_PEEKED = 1000  # rows that tell a file's kind
_CHUNK, _MAX_ROW = 1 << 20, 1 << 24  # characters
_SEPARATOR = re.compile(r"\s*,?\s*")
_ID = re.compile(r"[0-9]{10}")
_OPTION = re.compile(r"\(?([A-Z])[:.)]\s*(.*)")
_IMAGE = "<image>"
Known = dict[str, tuple[int, str, int]]  # by original id: shard, id and text hash of the caption


class Tally:
    """How many rows of one kind there are, and how many have which defect, with its first place."""

    def __init__(self) -> None:
        self.rows = self.rejected = 0
        self.defects: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.checks: Counter[str] = Counter()

    def add(self, place: str, fatal: str | None, defect: str | None, keep: bool) -> bool:
        """Count a row at ``place`` (file and row number); return whether it is rejected."""
        rejected = bool(fatal or (defect and not keep))
        self.rows += 1
        self.rejected += rejected
        if code := fatal or defect:
            self.defects[code] += 1
            self.first.setdefault(code, place)
        return rejected

    def table(self, kind: str) -> str:
        """Return the counts as Markdown."""
        lines = [f"{kind}: {self.rows:,} rows, {self.rows - self.rejected:,} taken, {self.rejected:,} rejected"]
        lines += ["", "| defect | rows | first |", "|---|---:|---|"] if self.defects else []
        lines += [f"| {code} | {count:,} | {self.first[code]} |" for code, count in self.defects.most_common()]
        if self.checks:
            refused = ", ".join(f"{code} {count:,}" for code, count in self.checks.most_common(8))
            lines += ["", f"our checks of generated text would refuse {self.checks.total():,} of these: {refused}"]
        return "\n".join(lines) + "\n"


def import_release(
    paths: Sequence[Path], run_dir: Path, keep_defects: bool = False, license: str | None = None
) -> str:
    """Make a run of released files; return a table of rows and defects. The same command makes the same run again.

    Args:
        paths: the pre-training file and, if wanted, the instruction files, in any order.
        run_dir: the run directory, new or of the same import.
        keep_defects: keep rows with a defect as far as a run can hold them, instead of rejecting them.
        license: under which the text may be used, for the card.

    Raises:
        SeedError: a file cannot be read, or is not a released file.
        RunError: the run holds something else.
    """
    kinds = [(path, _kind(path)) for path in paths]
    if not any(kind == "captions" for _, kind in kinds):
        names = ", ".join(map(str, paths))
        raise SeedError(f"none of {names} is the pre-training file, whose answers are its captions; give it too")
    files = {path.name: sha256(path) for path in paths}
    recipe = Recipe(name=SOURCE, directory=run_dir.resolve().parent)
    run = Run(run_dir, None if (run_dir / "run.json").is_file() else recipe, create=True)
    imported = {"imported": files, "keep_defects": keep_defects, "license": license or LICENSE, "model": MODEL}
    for stage in (SEEDS, CAPTIONS, *INSTRUCTIONS.values()):
        run.begin(stage, imported)
    known: Known = {}
    tally = Tally()
    rows = (row for path, kind in kinds if kind == "captions" for row in read_rows(path))
    with Progress("captions", None) as bar:
        for shard, part in enumerate(iter(lambda: list(islice(rows, SHARD_ROWS)), [])):
            _commit_captions(run, shard, part, known, tally, keep_defects, license or LICENSE)
            bar.update(len(part))
    report = tally.table("captions")
    rows = (row for path, kind in kinds if kind == "instructions" for row in read_rows(path))
    return report + "\n" + _commit_instructions(run, rows, known, keep_defects).table("conversations")


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each row of a file's JSON list; a SeedError says why it cannot be read as one."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, value in enumerate(_list_items(file), 1):
                yield f"{path.name} row {number - 1}", value
    except OSError as error:
        raise SeedError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        said = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).split(": line")[0]
        raise SeedError(f"{path}, row {number}: {said}; convert it to UTF-8, or download it again") from error
    if not number:
        raise SeedError(f"{path} holds an empty list; give the file as it was released")


def _list_items(file: TextIO) -> Iterator[Any]:
    """Yield the values of one JSON list; a ValueError or RecursionError says what is wrong with it."""
    decoder, text, place = json.JSONDecoder(), file.read(_CHUNK).lstrip(), 1
    if not text.startswith("["):
        raise ValueError(f"it must be one JSON list of rows but begins with {text[:20]!r}")
    while True:
        place = _SEPARATOR.match(text, place).end()  # type: ignore[union-attr]  # it may be empty, and so matches
        if text.startswith("]", place) and not (text[place + 1 :] + file.read()).strip():
            return
        try:
            value, end = decoder.raw_decode(text, place)
            complete = end < len(text)  # a number may go on in the next chunk
        except ValueError:
            complete = False
            if len(text) - place > _MAX_ROW:
                raise
        if complete:
            yield value
            place = end
        elif more := file.read(_CHUNK):
            text, place = text[place:] + more, 0
        else:
            decoder.decode(text[place:])  # raises
            raise ValueError("the list does not end")


def _kind(path: Path) -> str:
    rows = [value for _, value in islice(read_rows(path), _PEEKED)]
    captions = sum(len(_turns(row) or ()) == 2 and _turns(row)[1]["value"] == row.get("caption") for row in rows)
    return "captions" if 2 * captions > len(rows) else "instructions"


def _turns(row: Any) -> Any:
    """Return the conversation of a row if it is a list of ``{"from": text, "value": text}``, else None."""
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    texts = all(turn.keys() == {"from", "value"} and set(map(type, turn.values())) == {str} for turn in turns)
    return turns if turns and texts else None


def _shape_defect(row: Any, turns: Any) -> str | None:
    """Return what makes a row one that a run cannot hold."""
    if not isinstance(row, dict) or turns is None:
        return "conversations_malformed" if isinstance(row, dict) else "not_an_object"
    return None if isinstance(row.get("caption"), str) else "caption_not_text"


def _turns_defect(turns: list[dict[str, str]]) -> str | None:
    speakers = [turn["from"] for turn in turns]
    images = [turn["value"].count(_IMAGE) for turn in turns]
    faults = {
        "speaker_unknown": not {"human", "gpt"}.issuperset(speakers),
        "turns_out_of_order": speakers != ["human", "gpt"] * (len(turns) // 2),
        "turn_empty": not all(turn["value"].replace(_IMAGE, "").strip() for turn in turns),
        "image_missing": not sum(images),
        "image_several": sum(images) > 1,
        "image_misplaced": not images[0],
    }
    return next((code for code, found in faults.items() if found), None)


def _commit_captions(
    run: Run, shard: int, part: list[tuple[str, Any]], known: Known, tally: Tally, keep: bool, license: str
) -> None:
    """Write a shard of seeds without text, and of captions, which are added to ``known``."""
    ids = [row_id(shard, number) for number in range(len(part))]
    seeds = pa.table([ids, pa.nulls(len(ids)), [SOURCE] * len(ids), [license] * len(ids)], names=SEEDS.schema.names)  # type: ignore[union-attr]
    run.commit(SEEDS, shard, len(ids), parquet(seeds.cast(SEEDS.schema)))
    taken: list[Row] = []
    rejected: list[Row] = []
    for id, (place, row) in zip(ids, part, strict=True):
        turns = _turns(row)
        fatal = _shape_defect(row, turns)
        defect = None if fatal else _caption_defect(row, turns, known)
        if tally.add(place, fatal, defect, keep):
            rejected.append({"id": id, "reason": fatal or defect, "raw": json.dumps(row, ensure_ascii=False)})
            continue
        caption, original = row["caption"], row.get("id")
        if isinstance(original, str):
            known.setdefault(original, (shard, id, text_hash(caption)))
        fault = caption_fault(caption, caption)
        tally.checks.update([fault] if fault else [])
        plain = [{"from": "human", "value": turns[0]["value"]}, {"from": "gpt", "value": caption}]
        own = {"id": id, "caption": caption, "instruction": turns[0]["value"], "source": SOURCE, "license": license}
        own |= {"words": len(caption.split()), "input_hash": text_hash(""), "conversations": turns}
        own |= {"original_id": None if original is None else str(original), "model": MODEL}
        taken.append(own | ({"conversations": None} if turns == plain else {}))
    _commit(run, CAPTIONS, shard, taken, rejected)


def _caption_defect(row: Row, turns: list[dict[str, str]], known: Known) -> str | None:
    id = row.get("id")
    faults = {
        "id_missing": id is None,
        "id_odd": id is not None and not (isinstance(id, str) and _ID.fullmatch(id)),
        "id_duplicate": isinstance(id, str) and id in known,
        "caption_empty": not row["caption"].strip(),
    }
    found = next((code for code, is_so in faults.items() if is_so), None) or _turns_defect(turns)
    if found:
        return found
    return (
        "several_exchanges" if len(turns) > 2 else None if turns[1]["value"] == row["caption"] else "gpt_not_caption"
    )


def _commit_instructions(run: Run, rows: Iterator[tuple[str, Any]], known: Known, keep: bool) -> Tally:
    """Write the conversations by task, in the shards of their captions and in their order."""
    tally, rejected = Tally(), defaultdict[tuple[str, int], list[Row]](list)
    taken: defaultdict[tuple[str, int], dict[str, bytes]] = defaultdict(dict)
    with Progress("conversations", None) as bar:
        for place, row in rows:
            bar.update()
            turns = _turns(row)
            fatal = _shape_defect(row, turns)
            items = _items(turns) if not fatal and not _turns_defect(turns) else []
            task = _task(items)
            shard, id, hashed = known.get(str(row.get("id")) if isinstance(row, dict) else "", (0, "", 0))
            fatal = (
                fatal or (None if id else "caption_unknown") or ("id_duplicate" if id in taken[task, shard] else None)
            )
            defect = None if fatal else _conversation_defect(row, turns, items, task, hashed)
            if tally.add(place, fatal, defect, keep):
                raw = json.dumps(row, ensure_ascii=False)
                rejected[task, shard].append({"id": id, "reason": fatal or defect, "raw": raw})
                continue
            scene = Scene(row["caption"])
            tally.checks.update(fault for item in items if (fault := item_fault(item, task, scene)))
            own = {"id": id, "task": task, "conversations": turns, "input_hash": hashed, "original_id": row["id"]}
            taken[task, shard][id] = json.dumps(own | {"model": MODEL}).encode()
    for task, stage in INSTRUCTIONS.items() if tally.rows else ():
        for shard in run.shards(CAPTIONS):
            found = taken.get((task, shard), {})
            _commit(run, stage, shard, [json.loads(found[id]) for id in sorted(found)], rejected[task, shard])
    return tally


def _items(turns: list[dict[str, str]]) -> list[Any]:
    """Return the items of a conversation; two or more lines such as ``A: ...`` or ``A) ...`` are options."""
    items = []
    for human, gpt in zip(turns[::2], turns[1::2], strict=True):
        lines = [line.strip() for line in human["value"].replace(_IMAGE, "").split("\n") if line.strip()]
        options = {match[1]: match[2] for line in lines if (match := _OPTION.fullmatch(line))}
        chosen = {"Options": options} if len(options) > 1 else {}
        question = "\n".join(line for line in lines if not (chosen and _OPTION.fullmatch(line)))
        items.append({"Question": question, **chosen, "Answer": gpt["value"].strip()})
    return items


def _task(items: list[Any]) -> str:
    if 2 * sum("Options" in item for item in items) > len(items):
        return "multiple_choice"
    words = sum(len(item["Answer"].split()) for item in items) / max(1, len(items))
    return "complex_reasoning" if words >= LONG_ANSWER_WORDS else "question_answering"


def _conversation_defect(row: Row, turns: Any, items: list[Any], task: str, hashed: int) -> str | None:
    if text_hash(row["caption"]) != hashed:
        return "caption_differs"
    if (fault := _turns_defect(turns)) or task != "multiple_choice":
        return fault
    if any(tuple(item.get("Options", ())) != tuple(LETTERS) for item in items):
        return "not_four_options"
    return "answer_not_an_option" if any(item["Answer"] not in LETTERS for item in items) else None


def _commit(run: Run, stage: Stage, shard: int, taken: list[Row], rejected: list[Row]) -> None:
    reasons = dict(Counter(row["reason"] for row in rejected))
    table = pa.Table.from_pylist(taken, stage.schema)
    aside = pa.Table.from_pylist(rejected, REJECTED_SCHEMA)
    run.commit(stage, shard, len(table), parquet(table), aside, counts={"rejected": reasons})
