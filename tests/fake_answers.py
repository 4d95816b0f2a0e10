"""What the fake server says by default: plausible English made of the request's own words, by messages and seed alone.

A caption is its seed and sentences about the seed's words; an answer by a schema is made of words of the caption, so
that the checks accept both. Asked again with the same messages and seed, the answer is the same.
"""

import json
import re
from random import Random
from typing import Any

_TOKEN = re.compile(r"[a-z]+|[.,;:?!]")
_NOT_THINGS = """
about above across after again against ahead all along also among and another any are around away back because been
before behind being below beneath beside between beyond black blue both bright brings brown but calm can caption casts
catches clearly close closer come comes cover covered covers dark description down draw draws each eats edge edges even
every extra falls few five flat for four from front full gives goes green grey grows half has have held her here his
holding holds image into its itself just keep kept kinds lead leads leaning leans left lends less level lies like
little long look looks lost lower made makes mark mirrors more most mostly much near nearby nearest next not nothing
one only open other over pale paragraph part photo photograph picture place plain rest rests right rise rises runs same
scene seems seen sentence several shade shallow shows side sides sits sitting slightly small smaller soft some space
stand standing stands still such takes tall tell text than that the their them then there these thin this those three
through throws touches toward towards two under uneven upper very view visible walks warm was wear were what when where
which while white who wide with within without worn yellow your
"""
_STOP = frozenset(_NOT_THINGS.split())  # a run of other words ends with the name of a thing
_SENTENCES = (
    "The {w} stands out clearly against a pale and plain background.",
    "Close to the front, the {w} catches soft light from the left and throws a long shadow across the ground.",
    "The surface around the {w} is uneven, with small patches of brown and grey between the lighter parts.",
    "Behind the {w}, two tall dark shapes rise and leave a strip of open space between them.",
    "Thin blue lines run along the edge of the {w} and end near its lower corner.",
    "The upper part of the {w} is bright, while the lower part lies in the shade.",
    "To the right of the {w} a narrow path leads away and is lost among low green plants.",
    "The side of the {w} that is nearest shows worn corners and a few scratches.",
    "A row of flat stones lies at an angle in front of the {w}, half covered with dry leaves.",
    "On the left a wooden post leans slightly, and its shadow touches the base of the {w}.",
    "There is a shallow puddle beside the {w}, and its water mirrors part of the shape above it.",
    "The colours are mostly brown and green, with one patch of red close to the {w}.",
)
_ASKED = (
    ("Where is the {w}?", "The {w} is close to the {v}, and the {u} is not far away from it."),
    ("What can be seen next to the {w}?", "Next to it there is the {v}, with the {u} a little further on."),
    ("Which two things are on the same side as the {w}?", "The {v} and the {u} are both there, close to each other."),
    ("Why does the {w} draw the eye before the {v}?", "The {w} is in front of the {u}, so it is seen before the {v}."),
    ("How is the {w} placed in relation to the {v}?", "It stands before the {v}, with the {u} between them."),
    ("Does the {w} touch the {v}?", "No, because the {u} is between the {w} and the {v} and keeps them apart."),
    ("Who would see the {w} first, at the {v} or at the {u}?", "Someone at the {v}, since the {u} is further away."),
    ("Is the {w} nearer than the {v}?", "Yes, since the {u} is behind it, and the {v} is further away still."),
)
_CHOICES = ("What is next to the {w}?", "Which of these is close to the {w}?", "What lies beside the {w}?")
_WRONG = ("An iron anchor and rope", "A yellow tractor", "A glass bottle", "A paper kite", "A copper kettle")


def answer(messages: list[dict[str, str]], seed: int, schema: dict[str, Any] | None, max_tokens: int) -> str:
    """Return the whole answer to a chat, without a beginning that the last message may give."""
    contents = [message["content"].strip() for message in messages]
    prefix = contents.pop() if messages[-1]["role"] == "assistant" else ""
    parts, named = contents[-1].split("-----"), re.search(r"[Ss]cene: (.*)", contents[-1])
    subject = named[1] if named else contents[-1]  # the seed or caption: after "scene:", or between lines of dashes
    if len(parts) > 2:
        subject = parts[1].strip().removeprefix("What the picture shows:").strip()
    rng = Random(f"{seed} {subject} {prefix}")
    if schema is None:
        return _caption(rng, subject, prefix, max_tokens)
    if "Right" in schema.get("properties", {}):  # of a judge: the answers that it is shown and the caption implies
        shown, things = re.findall(r"^([A-D]): (.*)", contents[-1], re.M), set(_things(subject))
        return json.dumps({"Right": [letter for letter, said in shown if things.issuperset(_things(said))]})
    return json.dumps(_Instance(rng, subject).value(schema), ensure_ascii=False)


def _things(text: str) -> list[str]:
    """Return the last words of runs of content words: "A brown dog on a sandy beach." gives dog and beach."""
    things, last = dict[str, None](), ""
    for word in [*_TOKEN.findall(text.lower()), "."]:
        plain = len(word) < 3 or word in _STOP
        if plain and last:
            things[last] = None
        last = "" if plain else word
    return list(things)


def _caption(rng: Random, subject: str, prefix: str, max_tokens: int) -> str:
    words, bare = _things(subject) or ["wall", "bench"], subject.rstrip(" .!?")
    said = [f"{bare.capitalize() if subject.islower() else bare}."]
    if prefix:
        said = [f"the {words[0]} can be seen in full, and the ground before it is level and bare."]
    size = len(said[0]) + len(prefix)
    for sentence in rng.sample(_SENTENCES, len(_SENTENCES)):
        size += len(sentence) + 6
        if size > min(600, max_tokens * 4 - 8):
            break
        said.append(sentence.replace("{w}", rng.choice(words)))
    return (" " if prefix else "") + " ".join(said)


class _Instance:
    """Values for a JSON schema, made of the words of a caption."""

    def __init__(self, rng: Random, caption: str) -> None:
        self.rng, self.words = rng, _things(caption)
        self.words += ["wall", "bench", "stone", "tree"][: max(0, 4 - len(self.words))]
        self.asked = rng.sample(_ASKED, len(_ASKED))
        self.first, self.done = rng.randrange(len(self.words)), 0

    def value(self, schema: dict[str, Any]) -> Any:
        if keys := schema.get("properties"):
            return self.item(keys) if {"Question", "Answer"} <= keys.keys() else {k: self.value(keys[k]) for k in keys}
        if "enum" in schema:
            return self.rng.choice(schema["enum"])
        if schema.get("type") == "array":
            least = schema.get("minItems", 1)
            count = self.rng.randint(least, schema.get("maxItems", least + 1))
            return [self.value(schema["items"]) for _ in range(count)]
        return {"string": f"The {self.rng.choice(self.words)} is there.", "boolean": True}.get(schema["type"], 3)

    def item(self, keys: dict[str, Any]) -> dict[str, Any]:
        """Return one question with its answer; no two of an answer are about the same word, while words last."""
        n, count = self.done, len(self.words)
        self.done += 1
        w, v, u = (self.words[(self.first + n + step) % count] for step in (0, count // 3 + 1, 2 * (count // 3) + 1))
        if "Options" not in keys:
            question, said = self.asked[n % len(_ASKED)]
            return {"Question": question.format(w=w, v=v, u=u), "Answer": said.format(w=w, v=v, u=u)}
        right = f"The {v} and {u}"
        options = self.rng.sample([right, *self.rng.sample(_WRONG, 3)], 4)
        letters = dict(zip("ABCD", options, strict=True))
        question = _CHOICES[n % 3].format(w=w)
        return {"Question": question, "Options": letters, "Answer": "ABCD"[options.index(right)]}
