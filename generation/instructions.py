"""Stage 2: captions become multi-turn conversations of three tasks (paper, section on Unicorn-471K-Instruction)."""

from collections import Counter
from collections.abc import Mapping

from .checks.items import LETTERS, QA, Scene, Shown, groundedness, question_type, right_answer, sound_items
from .engine import Item, generate
from .prompts import load_prompt
from .stages import CAPTIONS, INSTRUCTIONS, TASKS, Row, select, stable_hash, text_hash
from .store import Run
from .tgi.client import Answer, Request

Turns = list[dict[str, str]]


class InstructionTask:
    """What the engine asks about the captions that are selected for one task."""

    def __init__(self, run: Run, name: str) -> None:
        recipe = run.recipe
        self.name, self.stage, self.settings = name, INSTRUCTIONS[name], recipe.task(name)
        self.prompt, self.attempts, self.seed = load_prompt(self.settings.prompt), recipe.attempts, recipe.random_seed
        self.extra: Mapping[str, str] = selection_inputs(run, name)
        self.schema = self.prompt.answer_schema(*self.settings.items)
        items = (item for example in self.prompt.examples for item in example.answer["QA Pairs"])
        self.shown = Shown(self.prompt.question_types, items)

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return the captions of a shard that are selected for the task."""
        rows = run.table(CAPTIONS, shard, ["id", "caption"]).to_pylist()
        free = [row["id"] for row in rows]
        for name, fraction in self.extra.items():  # without overlap, earlier tasks take theirs first
            chosen = select(f"{self.seed} {name}", free, float(fraction) * len(rows) / max(1, len(free)))
            if name == self.name:
                break
            free = [id for id in free if id not in chosen]
        return [Item(row["id"], text_hash(row["caption"]), row) for row in rows if row["id"] in chosen]

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request for a conversation, of question types that are drawn for the caption."""
        key, (low, high) = (self.seed, self.name, item.id, attempt), self.settings.items
        values = {"caption": item.values["caption"], "min_items": str(low), "max_items": str(high)}
        types = sorted(self.prompt.question_types, key=lambda name: stable_hash("types", *key, name))[:high]
        messages = self.prompt.messages(values | {"types": "; ".join(types)})
        return Request(messages, self.prompt.sampling, stable_hash("instruction", *key) % (2**31 - 1) + 1, self.schema)

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the columns of a conversation once all answers together have enough sound items, else a reason."""
        caption, (low, high) = item.values["caption"], self.settings.items
        kept, dropped, faults = list[QA](), list[str](), list[str]()
        for answer in answers:
            sound, faults = sound_items(answer.text, answer.finish_reason, caption, self.name, self.shown, kept)
            kept, dropped = kept + sound, dropped + faults
        if len(kept) < low:
            return Counter(faults).most_common(1)[0][0] if faults else "too_few_items"
        order = sorted(range(min(high, len(kept))), key=lambda place: stable_hash("turn", self.name, item.id, place))
        shuffled, scene = [shuffle_options(kept[place], self.name, item.id, place) for place in order], Scene(caption)
        return {
            "task": self.name,
            "conversations": conversation(shuffled, self.name, item.id),
            "question_types": [question_type(qa["Question"]) for qa in shuffled],
            "grounded": [groundedness(qa["Question"], right_answer(qa), scene) for qa in shuffled],
            "dropped": dropped,
        }


def selection_inputs(run: Run, name: str) -> dict[str, str]:
    """Return what a task's selection depends on (``Run.inputs``): its fraction, and without overlap earlier tasks'."""
    earlier = () if run.recipe.instructions.overlap else TASKS[: TASKS.index(name)]
    return {task: str(run.recipe.task(task).fraction) for task in (*earlier, name)}


def shuffle_options(qa: QA, *key: object) -> QA:
    """Return an item with its options, if any, in an order that ``key`` draws: all letters are right alike."""
    if "Options" not in qa:
        return qa
    order = sorted(LETTERS, key=lambda letter: stable_hash("option", *key, letter))
    options = {new: qa["Options"][old] for new, old in zip(LETTERS, order, strict=True)}
    return qa | {"Options": options, "Answer": LETTERS[order.index(qa["Answer"])]}


def conversation(items: list[QA], *key: object) -> Turns:
    """Return a human and a gpt turn for each item; the first has ``<image>`` before or after it, as ``key`` draws.
    Options stand below the question as ``A: ...``, and the answer is the letter alone."""
    turns = []
    for qa in items:
        lines = [qa["Question"], *(f"{letter}: {option}" for letter, option in qa.get("Options", {}).items())]
        turns += [{"from": "human", "value": "\n".join(lines)}, {"from": "gpt", "value": qa["Answer"]}]
    first, text = stable_hash("image first", *key) % 2, turns[0]["value"]
    return [{"from": "human", "value": f"<image>\n{text}" if first else f"{text}\n<image>"}, *turns[1:]]


def items_of(turns: Turns) -> list[QA]:
    """Return the items of a conversation: the inverse of ``conversation``.

    >>> items_of([{"from": "human", "value": "<image>\\nWho?"}, {"from": "gpt", "value": "Nobody."}])
    [{'Question': 'Who?', 'Answer': 'Nobody.'}]
    """
    items = []
    for human, gpt in zip(turns[::2], turns[1::2], strict=True):
        question, *options = [line for line in human["value"].split("\n") if line != "<image>"]
        qa: QA = {"Question": question, "Answer": gpt["value"]}
        items.append(qa | {"Options": {line[0]: line[3:] for line in options}} if options else qa)
    return items


def make_instructions(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the conversations that are due, of all tasks in one pool of requests. Arguments and errors as in
    ``engine.generate``; also RunError if the captions are not complete."""
    run.require(CAPTIONS)
    generate(run, [InstructionTask(run, name) for name in TASKS], run.recipe.server, rank, world_size)
