"""Make a run of the JSON files that the authors released (Yu2020/Unicorn on the Hub), instead of generating data. Each
is one JSON list of LLaVA rows. In the pre-training file the only answer is the caption; in an instruction file ``id``
is that of the caption. The release names no task: options make it multiple choice, long answers reasoning."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from .checks.items import LETTERS
from .errors import SeedError
from .files import open_text, sha256, unique_keys
from .limits import SHARD_ROWS
from .logs import counted
from .recipe import parse_recipe
from .stages import CAPTIONS, INSTRUCTIONS, REJECTED_SCHEMA, SEED_SCHEMA, SEEDS, Row, Stage, row_id, text_hash
from .store import Run, parquet

SOURCE = "unicorn_original"
LICENSE = "not given; see the release, Yu2020/Unicorn"
MODEL = "Qwen2.5-72B-Instruct (as its authors say)"
LONG_ANSWER_WORDS = 20.0  # or more on average: complex reasoning (our bound)
_PEEKED = 1000  # rows that tell a file's kind
_CHUNK, _MAX_ROW = 1 << 20, 1 << 24  # characters
_SEPARATOR = re.compile(r"\s*,?\s*")
_ID = re.compile(r"[0-9]{10}")
_OPTION = re.compile(r"\(?([A-Z])[:.)]\s*(.*)")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, as "\ud83d" in JSON
_IMAGE = "<image>"
Known = dict[str, tuple[int, str, int]]  # by original id: shard, id and text hash of the caption
Key = tuple[str, int]  # task, or "" for captions, and shard


@dataclass
class Tally:
    """How many rows of one kind there are, how many are rejected, and how many have which defect, with the first."""

    keep_defects: bool
    rows: int = 0
    rejected: int = 0
    defects: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    _aside: defaultdict[Key, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def rejects(self, key: Key, place: str, id: str, row: Any, fatal: str | None, faults: dict[str, bool]) -> bool:
        """Count a row by its first defect; return whether it is rejected, and keep it then under ``key``."""
        self.rows += 1
        if defect := fatal or next((code for code, found in faults.items() if found), None):
            self.defects[defect] += 1
            self.first.setdefault(defect, place)
        if not defect or (self.keep_defects and not fatal):
            return False
        self.rejected += 1
        self._aside[key].append({"id": id, "reason": defect, "raw": json.dumps(row)})
        return True

    def commit(self, run: Run, stage: Stage, key: Key, taken: list[Row]) -> None:
        """Write the shard of ``key`` with the rows that are taken, and those that are rejected."""
        rejected = self._aside.pop(key, [])
        table, aside = pa.Table.from_pylist(taken, stage.schema), pa.Table.from_pylist(rejected, REJECTED_SCHEMA)
        counts = {"rejected": dict(Counter(row["reason"] for row in rejected))}
        run.commit(stage, key[1], len(table), parquet(table), aside, counts=counts)

    def table(self, kind: str) -> str:
        """Return the counts as Markdown."""
        lines = [f"{kind}: {self.rows:,} rows, {self.rows - self.rejected:,} taken, {self.rejected:,} rejected"]
        lines += ["", "| defect | rows | first |", "|---|---:|---|"] if self.defects else []
        lines += [f"| {code} | {count:,} | {self.first[code]} |" for code, count in self.defects.most_common()]
        return "\n".join(lines) + "\n"


def import_release(paths: list[Path], run_dir: Path, keep_defects: bool = False, license: str | None = None) -> str:
    """Make a run of the pre-training file and, if wanted, instruction files; return a table of rows and defects. Rows
    with a defect are rejected or, with ``keep_defects``, kept as far as a run can hold them. A SeedError says that a
    file is not a released one, a RunError that the run holds something else."""
    pretraining, names = dict[Path, bool](), ", ".join(map(str, paths))
    for path in paths:  # most of its rows are one exchange whose answer is the caption
        peeked = [row for _, row in islice(read_rows(path), _PEEKED)]
        sound = [(row["caption"], row["conversations"]) for row in peeked if not _fatal_defect(row)]
        equal = sum(len(turns) == 2 and turns[1]["value"] == caption for caption, turns in sound)
        pretraining[path] = 2 * equal > len(peeked)
    if not any(pretraining.values()):
        raise SeedError(f"none of {names} is the pre-training file, whose answers are its captions; give it too")
    files = {path.name: sha256(path) for path in paths}
    if len(files) < len(paths):
        raise SeedError(f"two of {names} have the same name; give each file once, under its own name")
    license, directory = license or LICENSE, os.path.realpath(run_dir.parent)
    recipe = parse_recipe({"name": SOURCE, "directory": directory}, f"run directory {run_dir}")
    run = Run(run_dir, None if (run_dir / "run.json").is_file() else recipe, create=True)
    for stage in (SEEDS, CAPTIONS, *INSTRUCTIONS.values()):
        run.begin(stage, {"imported": files, "keep_defects": keep_defects, "license": license, "model": MODEL})
    known, captions, conversations = Known(), Tally(keep_defects), Tally(keep_defects)
    rows = counted((row for path in paths if pretraining[path] for row in read_rows(path)), "captions", "row")
    for shard, part in enumerate(iter(lambda: list(islice(rows, SHARD_ROWS)), [])):
        ids, taken = [row_id(shard, number) for number in range(len(part))], list[Row]()
        columns = [ids, pa.nulls(len(ids), pa.string()), [SOURCE] * len(ids), [license] * len(ids)]
        run.commit(SEEDS, shard, len(ids), parquet(pa.table(columns, SEED_SCHEMA)))
        for id, (place, row) in zip(ids, part, strict=True):
            faults = dict[str, bool]()
            if not (fatal := _fatal_defect(row)):
                caption, turns, original = row["caption"], row["conversations"], row.get("id")
                odd = not isinstance(original, str) or not _ID.fullmatch(original)
                faults = {"id_missing": original is None, "id_odd": odd, "id_duplicate": str(original) in known}
                faults |= {"caption_empty": not caption.strip(), **_turns_faults(turns)}
                faults |= {"several_exchanges": len(turns) > 2, "gpt_not_caption": turns[-1]["value"] != caption}
            if captions.rejects(("", shard), place, id, row, fatal, faults):
                continue
            if isinstance(original, str):
                known.setdefault(original, (shard, id, text_hash(caption)))
            plain = [{"from": "human", "value": turns[0]["value"]}, {"from": "gpt", "value": caption}]
            own = {"id": id, "caption": caption, "instruction": turns[0]["value"], "words": len(caption.split())}
            own |= {"source": SOURCE, "license": license, "input_hash": text_hash(""), "model": MODEL}
            own |= {"conversations": None if turns == plain else turns}
            taken.append(own | {"original_id": None if original is None else str(original)})
        captions.commit(run, CAPTIONS, ("", shard), taken)
    others = (row for path in paths if not pretraining[path] for row in read_rows(path))
    _commit_instructions(run, others, known, conversations)
    return f"{captions.table('captions')}\n{conversations.table('conversations')}"


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each row of a file's JSON list; a SeedError says why it cannot be read as one. At most
    one row and a chunk are in memory (of ijson, memory quadratic in the depth of a hostile file)."""
    decoder, number = json.JSONDecoder(object_pairs_hook=unique_keys), 0
    try:
        with open_text(path) as file:
            text, place = file.read(_CHUNK).lstrip(), 1
            if not text.startswith("["):
                raise ValueError(f"it must be one JSON list of rows but begins with {text[:20]!r}")
            while True:
                place = _SEPARATOR.match(text, place).end()  # type: ignore[union-attr]  # it matches nothing, too
                if text.startswith("]", place) and not (text[place + 1 :] + file.read()).strip():
                    break
                try:
                    value, place = decoder.raw_decode(text, place)
                except json.JSONDecodeError as error:
                    more = "" if len(text) - place > _MAX_ROW else file.read(_CHUNK)
                    if not more:
                        raise ValueError("the list does not end" if place == len(text) else str(error)) from error
                    text, place = text[place:] + more, 0
                    continue
                yield f"{path.name} row {number}", value
                number += 1
    except OSError as error:
        raise SeedError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        fault = str(error).split(": line")[0] if not isinstance(error, UnicodeError) else "it is not UTF-8; convert it"
        raise SeedError(f"{path}, row {number}: {fault}, or download the file again") from error
    if not number:
        raise SeedError(f"{path} holds an empty list; give the file as it was released")


def _fatal_defect(row: Any) -> str | None:
    """Return what makes a row one that a run cannot hold."""
    if not isinstance(row, dict):
        return "not_an_object"
    turns = row.get("conversations")
    kinds = [turn if isinstance(turn, dict) else {} for turn in turns] if isinstance(turns, list) else []
    if not kinds or any({key: type(turn[key]) for key in turn} != {"from": str, "value": str} for turn in kinds):
        return "conversations_malformed"
    if not isinstance(row.get("caption"), str):
        return "caption_not_text"
    return "character_broken" if _SURROGATE.search(json.dumps(row, ensure_ascii=False)) else None


def _turns_faults(turns: list[dict[str, str]]) -> dict[str, bool]:
    speakers = [turn["from"] for turn in turns]
    images = [turn["value"].count(_IMAGE) for turn in turns]
    return {
        "speaker_unknown": not {"human", "gpt"}.issuperset(speakers),
        "turns_out_of_order": speakers != ["human", "gpt"] * (len(turns) // 2),
        "turn_empty": not all(turn["value"].replace(_IMAGE, "").strip() for turn in turns),
        "image_missing": not sum(images),
        "image_several": sum(images) > 1,
        "image_misplaced": not images[0],
    }


def _commit_instructions(run: Run, rows: Iterator[tuple[str, Any]], known: Known, tally: Tally) -> None:
    """Write the conversations by task, in the shards of their captions and in their order."""
    taken = defaultdict[Key, dict[str, bytes]](dict)
    for place, row in counted(rows, "conversations", "row"):
        fatal = _fatal_defect(row)
        turns = [] if fatal else row["conversations"]
        faults = _turns_faults(turns) if turns else {}
        options, answers = [], []  # of each exchange; options are two or more lines like "A: ..." or "A) ..."
        for human, gpt in zip(turns[::2], turns[1::2], strict=True) if not any(faults.values()) else ():
            lines = [line.strip() for line in human["value"].replace(_IMAGE, "").split("\n")]
            letters = tuple(dict.fromkeys(match[1] for line in lines if (match := _OPTION.fullmatch(line))))
            options.append(letters[1:] and letters)
            answers.append(gpt["value"].strip())
        words = sum(len(answer.split()) for answer in answers)
        task = "complex_reasoning" if words >= LONG_ANSWER_WORDS * len(answers) > 0 else "question_answering"
        if choice := 2 * sum(map(bool, options)) > len(options):
            task = "multiple_choice"
        shard, id, hashed = known.get(str(row.get("id")) if isinstance(row, dict) else "", (0, "", 0))
        if not fatal:
            fatal = "caption_unknown" if not id else "id_duplicate" if id in taken[task, shard] else None
            faults = {"caption_differs": text_hash(row["caption"]) != hashed, **faults}
            faults["not_four_options"] = choice and any(letters != LETTERS for letters in options)
            faults["answer_not_an_option"] = choice and any(answer not in LETTERS for answer in answers)
        if tally.rejects((task, shard), place, id, row, fatal, faults):
            continue
        own = {"id": id, "task": task, "conversations": row["conversations"], "input_hash": hashed}
        taken[task, shard][id] = json.dumps(own | {"original_id": row["id"], "model": MODEL}).encode()
    for task, stage in INSTRUCTIONS.items() if tally.rows else ():
        for shard in run.shards(CAPTIONS):
            found = [json.loads(row) for _, row in sorted(taken[task, shard].items())]
            tally.commit(run, stage, (task, shard), found)
