"""What the stand-in for the language model says: plausible text, now and then a bad answer, all by the request alone.

A scene is drawn by the first sentence of the text in the request. A caption begins with its seed, so that questions
about the caption are about the same scene. The wording is drawn by the sampling seed as well: asked again with another
one, the stand-in says something else, and asked the same again it says the same.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import orjson

from ..config import TASKS
from . import scenes

CAPTIONS = "captions"
KINDS = (CAPTIONS, *TASKS)  # of requests; a request's JSON schema bears its prompt's name
BAD = 0.03  # of the answers, by their request
HOPELESS = 0.003  # of the scenes: whatever is asked of them is refused
CHARACTERS_A_TOKEN = 4  # of English, roughly
_REFUSALS = (
    "I'm sorry, but I cannot help with that request.",
    "I am unable to write about this, as it may violate my guidelines.",
    "As a language model I can't see this, so I won't say more about it.",
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        kind: one of ``KINDS``.
        key: of the request: equal for equal requests, and for hardly any others.
        text: what is said.
        finish_reason: ``stop`` or ``length``.
        prompt_tokens, completion_tokens: at ``CHARACTERS_A_TOKEN``.
        warm_up: it was asked for so few tokens that nobody will read it.
    """

    kind: str
    key: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    warm_up: bool


def reply(body: bytes) -> Reply:
    """The answer to a chat-completion request.

    Raises:
        LookupError, TypeError, ValueError: the body is none.
    """
    asked: dict[str, Any] = orjson.loads(body)
    named = asked["response_format"]["json_schema"]["name"] if "response_format" in asked else CAPTIONS
    kind = named.removesuffix("_small")
    text, seed = _subject(asked["messages"]), int(asked["seed"])
    rng = Random(f"{seed} {kind} {text}")
    key = rng.getrandbits(63)
    said, finish_reason = (_caption if kind == CAPTIONS else _conversation)(rng, kind, text)
    return Reply(
        kind=kind,
        key=key,
        text=said,
        finish_reason=finish_reason,
        prompt_tokens=len(body) // CHARACTERS_A_TOKEN,
        completion_tokens=len(said) // CHARACTERS_A_TOKEN + 1,
        warm_up=asked["max_tokens"] <= 16,
    )


def _subject(messages: list[dict[str, str]]) -> str:
    """The seed or caption of a request: what its last message has between two lines of dashes."""
    return messages[-1]["content"].split("-----")[1].strip()


def _scene(kind: str, text: str) -> tuple[scenes.Scene, bool]:
    """What a seed, or the caption made of it, is about; and whether it is hopeless to ask of it."""
    rng = Random(text.split(". ", 1)[0].rstrip(".!? "))
    scene = scenes.scene(rng)
    return scene, Random(f"{kind} {rng.random()}").random() < HOPELESS


def _caption(rng: Random, kind: str, seed: str) -> tuple[str, str]:
    scene, hopeless = _scene(kind, seed)
    text = f"{seed.rstrip('.!? ')}. {scenes.caption(rng, scene)}"
    if hopeless:
        return rng.choice(_REFUSALS), "stop"
    if rng.random() >= BAD:
        return text, "stop"
    bad = (
        (rng.choice(_REFUSALS), "stop"),
        (text[: text.index(". ") + 1], "stop"),  # too short
        (text[: len(text) // 3], "length"),  # broken off, and too short up to its last full stop
        (f"Here is the description you asked for: {text}", "stop"),
        (scenes.caption(rng, scenes.scene(rng)), "stop"),  # of something else
    )
    return rng.choice(bad)


def _conversation(rng: Random, kind: str, caption: str) -> tuple[str, str]:
    scene, hopeless = _scene(kind, caption)
    if hopeless:
        return rng.choice(_REFUSALS), "stop"
    if rng.random() >= BAD:
        return _dump(scenes.items(rng, kind, scene)), "stop"
    found = scenes.items(rng, kind, scene)
    text = _dump(found)
    bad = (
        (text[: len(text) // 2], "length"),
        (text[: len(text) // 2], "stop"),
        ("Here are some questions: " + "; ".join(item["Question"] for item in found), "stop"),
        (_dump(found[:2]), "stop"),
        (_dump(scenes.items(rng, kind, scenes.scene(rng))), "stop"),  # about something else
    )
    return rng.choice(bad)


def _dump(items: list[scenes.Item]) -> str:
    return orjson.dumps({"QA Pairs": items}).decode()
