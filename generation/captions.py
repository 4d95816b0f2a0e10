"""Stage 1: every seed becomes a dense caption, c = LLM(s) (paper, section on Unicorn-1.2M)."""

import math
import re
from collections.abc import Mapping
from statistics import NormalDist

from .checks.text import caption_fault, finish, shingles
from .dedup import drop_caption_duplicates
from .engine import Item, generate
from .prompts import PROMPTS, load_prompt, render
from .stages import CAPTIONS, SEEDS, Row, stable_hash, text_hash
from .store import Run
from .tgi.client import Answer, Request

_PARAPHRASES = (PROMPTS / "describe_image.txt").read_text(encoding="utf-8").splitlines()
# Lengths to ask for: log-normal, so that their mean is near the paper's 129 words and few are near its 51 and 483.
_MEDIAN_WORDS, _SIGMA, _NORMAL = 119, 0.4, NormalDist()
_MARGIN = 1.1  # models miss a length by some words


class CaptionTask:
    """What the engine asks about each seed."""

    stage = CAPTIONS

    def __init__(self, run: Run) -> None:
        self.settings, self.seed, self.attempts = run.recipe.captions, run.recipe.random_seed, run.recipe.attempts
        self.prompt = load_prompt(self.settings.prompt)
        self.extra: Mapping[str, str] = {}
        answers = [example.answer for example in self.prompt.examples]
        self.shown = frozenset(shingles([self.prompt.system or "", self.prompt.user, *answers]))

    def items(self, run: Run, shard: int) -> list[Item]:
        """Return the seeds of a shard."""
        return [Item(row["id"], text_hash(row["seed"]), row) for row in run.table(SEEDS, shard).to_pylist()]

    def request(self, item: Item, attempt: int) -> Request:
        """Return the request for a caption, of a length and with an opening that are drawn for the seed."""
        key, openings = (self.seed, item.id, attempt), self.prompt.openings
        opening = openings[stable_hash("opening", *key) % len(openings)] if openings else ""
        z = _NORMAL.inv_cdf((stable_hash("words", *key) + 1) / (2**63 + 1))
        low, high = self.settings.words
        words = round(max(low * _MARGIN, min(high / _MARGIN, _MEDIAN_WORDS * math.exp(_SIGMA * z))) / 5) * 5
        messages = self.prompt.messages({"seed": item.values["seed"], "words": str(words), "opening": opening})
        return Request(messages, self.prompt.sampling, stable_hash("caption", *key) % (2**31 - 1) + 1)

    def accept(self, item: Item, answers: list[Answer]) -> Row | str:
        """Return the columns of a caption, or why the last answer is not one."""
        prefix, text = render(self.prompt.answer_prefix or "", {"seed": item.values["seed"]}), answers[-1].text
        gap = " " if prefix and not re.match(r"[\s,.;:!?']", text) else ""
        caption = finish(prefix + gap + text, answers[-1].finish_reason)
        asked = _PARAPHRASES[stable_hash("describe", item.id) % len(_PARAPHRASES)]
        asked = f"<image>\n{asked}" if stable_hash("image first", item.id) % 2 else f"{asked}\n<image>"
        kept = {name: item.values[name] for name in ("seed", "source", "license")}
        kept |= {"caption": caption, "instruction": asked, "words": len(caption.split())}
        return caption_fault(caption, item.values["seed"], *self.settings.words, self.shown) or kept


def make_captions(run: Run, rank: int = 0, world_size: int = 1) -> None:
    """Make the captions that are due, then drop duplicates and contaminated ones if the recipe says so. Arguments and
    errors as in ``engine.generate``; also RunError if there are no seeds."""
    run.require(SEEDS)
    generate(run, [CaptionTask(run)], run.recipe.server, rank, world_size)
    if not run.due(CAPTIONS):  # else another process is still at work, and the last one does it
        with run.claim(CAPTIONS) as mine:
            if mine:
                drop_caption_duplicates(run)
