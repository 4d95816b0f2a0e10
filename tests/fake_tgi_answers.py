"""What the fake model says: template, tokens, deterministic answers; without HTTP.

An answer is a function of the prompt (and grammar) alone, never of the seed or of the order of requests, so that a
resumed run can be compared with an undisturbed one. References are to the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema

EOS = "<|im_end|>"
EOS_ID = 151_645
NO_TOOL = "no_tool"  # what a model may choose instead of a tool (section 1.5)
_ASSISTANT = "<|im_start|>assistant\n"
_TOKEN = re.compile(r"\s*(?:<\|im_(?:start|end)\|>|\w+|[^\w\s])|\s+")
_USER_TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)

# An answer never holds these, even where the prompt does.
_FORBIDDEN = re.compile(r"caption|description|image|\btexts?\b")
# Words of instructions rather than of scenes.
_NOT_CONTENT_WORDS = """
    picture photo photograph a about above across after against along all also among an and any are around as at
    based be been before behind below beside between both but by can could did do does during each few for from had
    has have her here hers him his how i if in inside into is it its itself just like may me more most must my near
    next no not of off on one onto or other our out outside over own same she should so some such than that the
    their them then there these they this those through to too under until up upon very was we were what when where
    which while who whom whose why will with within without would you your answer assistant detail detailed describe
    generate give given json language long make model output paragraph please prompt provide question return
    sentence short single user word words write
"""
_NOT_CONTENT = frozenset(_NOT_CONTENT_WORDS.split())
_FALLBACK = ("courtyard", "stone archway", "wooden bench", "climbing ivy")
_SLOTS: Mapping[str, Sequence[str]] = {
    "light": ("soft", "golden", "cool", "late", "early", "pale", "warm", "even", "low", "silvery"),
    "color": ("blue", "green", "ochre", "crimson", "ivory", "grey", "amber", "teal", "copper", "violet"),
    "place": ("a low hill", "the left edge", "a quiet corner", "the far side", "a wide path", "the middle distance"),
    "mood": ("calm", "lively", "solemn", "cheerful", "hushed", "restful", "playful", "stately"),
}
_OPENINGS = (
    "The scene brings together {list}, gathered under {light} light.",
    "In {light} light, the view takes in {list}, seen from {place}.",
    "Seen from {place}, the composition joins {list} in one {mood} frame.",
    "A {mood} view opens on {list}, all of it touched by {light} light.",
)
_CONTINUATIONS = (
    "{list} in {light} light, with {place} left open and quiet.",
    "{list} as seen from {place}, held together by a {mood} rhythm.",
    "{list} beneath a {light} sky, with {color} tones running through the whole scene.",
)
_SENTENCES = (
    "Close to the front, the {w} catches {light} light and throws a long {color} shadow.",
    "The {w} stands out clearly, its outline crisp against a {color} background.",
    "Toward {place}, smaller shapes fade into a {color} haze that hints at distance.",
    "Thin {color} lines follow the edge of the {w} and lead the eye upward.",
    "A {mood} feeling runs through the whole view, helped by the {light} sky overhead.",
    "The ground beneath the {w} is uneven, marked with {color} patches and fine grain.",
    "Behind the {w}, two tall forms rise and frame the open space between them.",
    "Reflections of {color} and {light} tones shimmer faintly on every smooth surface.",
    "From {place}, the {w} appears slightly larger than anything else around it.",
    "Small details, such as worn corners and {color} flecks, give the {w} a lived-in look.",
    "The space around the {w} is left open, which makes it feel {mood} and unhurried.",
    "Light falls from the upper left, warming one side of the {w} and cooling the other.",
    "A row of {color} shapes near {place} repeats the curve of the {w}.",
    "Nothing seems to move except the air, which softens the {w} at its edges.",
    "Deep {color} shades gather low in the frame, while the top stays bright and {light}.",
    "The {w} leans gently to one side, balanced by a {color} form across from it.",
)
_QUESTIONS = (
    "What stands closest to the {w}?",
    "Where is the {w} placed in relation to the {v}?",
    "Which color stands out most on the {w}?",
    "How does the {light} light fall on the {w}?",
    "Why does the {w} draw the eye before the {v}?",
    "Who might have left the {w} near {place}?",
    "When during the day would the {w} look like this?",
    "Is the {w} larger than the {v}?",
    "Does the {w} touch the {color} shape behind it?",
    "Are there any {color} marks on the {w}?",
)
# They name nothing that the prompt does not hold, as an answer about a scene must not.
_PHRASES = (
    "beside the {w}",
    "above the {w}",
    "next to the {w}",
    "in front of the {w}",
    "the {w} beside the {v}",
    "the {w}, with the {v} below it",
    "between the {w} and the {v}",
)


@dataclass(frozen=True)
class Grammar:
    """A constraint after the router's check: kind "json" with a schema, or "regex" with a pattern (section 1.5)."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Generation:
    """What one run of the model gave; `tokens` holds the EOS token when it was reached (section 1.1)."""

    text: str
    tokens: tuple[str, ...]
    finish_reason: str  # length | eos_token | stop_sequence


class GrammarError(ValueError):
    """A grammar that the router refuses; the text is that of its validation error (sections 1.5 and 2.1)."""


class UnsupportedRegexError(ValueError):
    """A regex that cannot be compiled; in TGI it surfaces only in the shard, as a 424 (section 1.5)."""


def render_chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """ChatML with the generation prompt; cut after the last message where that is the assistant's (section 1.2)."""
    turns = [f"<|im_start|>{m['role']}\n{_content(m)}{EOS}\n" for m in messages]
    if messages and messages[-1]["role"] == "assistant":
        return "".join(turns).removesuffix(f"{EOS}\n")
    return "".join(turns) + _ASSISTANT


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(c["text"] if c["type"] == "text" else f"![]({c['image_url']['url']})" for c in content)
    return content if isinstance(content, str) else json.dumps(message.get("tool_calls"))


def tokenize(text: str) -> list[str]:
    """Words and punctuation marks with the blanks before them; joined they give `text` back."""
    return _TOKEN.findall(text)


def token_id(token: str) -> int:
    """A stable id, below the EOS id of Qwen's vocabulary."""
    return EOS_ID if token == EOS else zlib.crc32(token.encode()) % EOS_ID


def decode(text: str, max_new_tokens: int, stop: Iterable[str] = ()) -> Generation:
    """Emit `text` token by token under StoppingCriteria: length first, then EOS, then stop strings (section 1.1)."""
    whole, stops = (*tokenize(text), EOS), tuple(stop)
    if not stops and len(whole) < max_new_tokens:
        return Generation(text, whole, "eos_token")
    out, tokens = "", []
    for token in whole:
        tokens.append(token)
        out += "" if token == EOS else token
        if len(tokens) >= max_new_tokens:  # also where the EOS itself is the last allowed token
            return Generation(out, tuple(tokens), "length")
        if token == EOS:
            return Generation(out, tuple(tokens), "eos_token")
        if stops and out.endswith(stops):
            return Generation(out, tuple(tokens), "stop_sequence")
    raise AssertionError("unreachable: the loop ends at EOS")


def answer(prompt: str, grammar: Grammar | None = None) -> str:
    """The whole answer to a rendered prompt: a paragraph, or what the grammar allows."""
    wanted = "" if grammar is None else json.dumps([grammar.kind, grammar.value])
    rng = random.Random(f"{prompt}\0{wanted}")
    turns = _USER_TURN.findall(prompt)
    groups = content_groups(turns[-1] if turns else prompt)
    if grammar is None:
        return _paragraph(rng, groups, prompt.rpartition(_ASSISTANT)[2] if _ASSISTANT in prompt else "")
    if grammar.kind == "regex":
        return rng.choice(_literals(grammar.value))
    return json.dumps(_Instance(rng, groups, grammar.value).build(grammar.value, ""), ensure_ascii=False)


def content_groups(message: str) -> list[str]:
    """Runs of content words in the last line of a message: "A brown dog on the beach" gives brown dog, beach."""
    line = next((line for line in reversed(message.splitlines()) if line.strip()), "")
    groups: list[str] = []
    for clause in re.split(r"[^\w\s'-]", line.lower()):
        run: list[str] = []
        for word in [*(word.strip("'-_") for word in clause.split()), "the"]:  # "the" closes the last run
            plain = word.isdigit() or len(word) < 3 or word in _NOT_CONTENT or _FORBIDDEN.search(word)
            if plain or len(run) == 3:
                groups += [" ".join(run)] if run else []
                run = []
            run += [] if plain else [word]
    return list(dict.fromkeys(groups))[:8] or list(_FALLBACK)


def _fill(rng: random.Random, template: str, **words: str) -> str:
    return template.format(**words, **{slot: rng.choice(choices) for slot, choices in _SLOTS.items()})


def _paragraph(rng: random.Random, groups: Sequence[str], prefill: str) -> str:
    """70 to 110 words in whole sentences; with a prefill, words that read on from it."""
    reads_on = bool(prefill.strip()) and prefill.rstrip()[-1] not in ".!?"
    names = [f"the {group}" for group in groups]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    sentences = [_fill(rng, rng.choice(_CONTINUATIONS if reads_on else _OPENINGS), list=listed)]
    words = [word for group in groups for word in (group, group.split()[-1])]
    for template in rng.sample(_SENTENCES, len(_SENTENCES)):
        if len(" ".join(sentences).split()) >= 72:
            break
        sentences.append(_fill(rng, template, w=rng.choice(words)))
    blank = " " if prefill.strip() and not prefill[-1].isspace() else ""
    return blank + " ".join(sentences)


def _literals(pattern: str) -> list[str]:
    literals = re.sub(r"^\((.*)\)$", r"\1", pattern, flags=re.DOTALL).split("|")
    if any(not literal or re.search(r"[\\.^$*+?{}\[\]()]", literal) for literal in literals):
        raise UnsupportedRegexError(f"the fake compiles alternations of plain literals only, not {pattern!r}")
    return literals


class _Instance:
    """Walks a schema as TGI's schema-to-regex step does: the first keyword it knows decides (section 1.5)."""

    def __init__(self, rng: random.Random, groups: Sequence[str], root: Mapping[str, Any]) -> None:
        self.rng, self.root = rng, root
        self.words = list(dict.fromkeys(word for group in groups for word in (group, group.split()[-1])))
        self.used: set[str] = set()

    def build(self, schema: Mapping[str, Any], name: str) -> Any:
        """A value for `schema`; `name` is the nearest property's, which decides between question and phrase."""
        if "properties" in schema:
            return {key: self.build(value, key) for key, value in schema["properties"].items()}
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword in schema:
                return self.build(self.rng.choice(schema[keyword]), name)
        if "prefixItems" in schema:
            return [self.build(item, name) for item in schema["prefixItems"]]
        if "enum" in schema:
            return self.rng.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        if "$ref" in schema:
            return self.build(resolve(self.root, schema["$ref"]), name)
        return self._typed(schema, name)

    def _typed(self, schema: Mapping[str, Any], name: str) -> Any:
        match schema.get("type"):
            case "string":
                return self._string(schema, name)
            case "integer" | "number":
                low = int(schema.get("minimum", 0))
                return self.rng.randint(low, int(schema.get("maximum", low + 9)))
            case "boolean":
                return self.rng.random() < 0.5
            case "array":
                least = int(schema.get("minItems", min(1, schema.get("maxItems", 1))))
                count = self.rng.randint(least, int(schema.get("maxItems", least + 2)))
                return [self.build(schema.get("items", {}), name) for _ in range(count)]
            case "object":
                return {}
        return None

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        """A question or a phrase not yet used in this answer; adjectives are added until one is new."""
        templates = _QUESTIONS if "question" in name.lower() else _PHRASES
        text, tries = "", 0
        while tries < 5_000 and (not text or text in self.used or len(text) < schema.get("minLength", 0)):
            w, v = self.rng.choice(self.words), self.rng.choice(self.words)
            extra = " ".join(self.rng.choice(_SLOTS["mood"]) for _ in range(tries // 20))
            template = self.rng.choice(templates)
            if w != v or "{v}" not in template:
                text = _fill(self.rng, template, w=f"{extra} {w}".strip(), v=v)[: schema.get("maxLength")]
            tries += 1
        self.used.add(text)
        return text


def resolve(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    """The sub-schema a local `$ref` points at; KeyError where there is none."""
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        node = node[part.replace("~1", "/").replace("~0", "~")]
    return dict(node)


def compile_problem(schema: Mapping[str, Any], root: Mapping[str, Any], seen: tuple[str, ...] = ()) -> str | None:
    """Why TGI's schema-to-regex step refuses a schema, or None (section 1.5)."""
    for keyword in ("properties", "allOf", "anyOf", "oneOf", "prefixItems"):
        if keyword in schema:
            children = schema[keyword].values() if keyword == "properties" else schema[keyword]
            return next(filter(None, (compile_problem(child, root, seen) for child in children)), None)
    for keyword in ("enum", "const"):
        if keyword in schema:
            values = schema["enum"] if keyword == "enum" else [schema["const"]]
            return f"unsupported data type in {keyword}" if any(isinstance(v, dict | list) for v in values) else None
    if "$ref" in schema:
        return _reference_problem(schema["$ref"], root, seen)
    if "type" in schema:
        return _type_problem(schema, root, seen)
    return None if not schema else "unsupported JSON Schema structure"


def _reference_problem(reference: str, root: Mapping[str, Any], seen: tuple[str, ...]) -> str | None:
    if not reference.startswith("#"):
        return f"external references are not supported: {reference}"
    if reference in seen:
        return f"recursive reference {reference}"  # the real router overflows its stack here and dies
    try:
        return compile_problem(resolve(root, reference), root, (*seen, reference))
    except (KeyError, TypeError):
        return f"cannot resolve {reference}"


def _type_problem(schema: Mapping[str, Any], root: Mapping[str, Any], seen: tuple[str, ...]) -> str | None:
    kind = schema["type"]
    if isinstance(kind, list):
        return "type arrays are not supported"
    if kind == "string" and not {"minLength", "maxLength", "pattern"} & schema.keys():
        known = schema.get("format", "date") in ("date-time", "date", "time", "uuid")
        return None if known else f"format {schema['format']} is not supported"
    if kind == "array" and "items" in schema:
        return compile_problem(schema["items"], root, seen)
    if kind == "object" and schema.get("additionalProperties") is False:
        return "additionalProperties is false but there are no properties"
    return None


def checked_grammar(grammar: Mapping[str, Any]) -> Grammar:
    """The router's checks of a schema; a regex is not looked at before the shard (section 1.5)."""
    if grammar["type"] == "regex":
        return Grammar("regex", grammar["value"])
    schema = grammar["value"]["schema"] if grammar["type"] == "json_schema" else grammar["value"]
    return Grammar("json", _checked_schema(schema if isinstance(schema, str) else json.dumps(schema)))


@lru_cache(maxsize=64)
def _checked_schema(source: str) -> dict[str, Any]:
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise GrammarError(f"grammar is not valid: {error}") from None
    if not isinstance(schema, dict):
        raise GrammarError("grammar is not supported")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise GrammarError(f"grammar is not valid: {error.message}") from None
    if "properties" not in schema:
        raise GrammarError("grammar is not valid: Grammar must have a 'properties' field")
    if problem := compile_problem(schema, schema):
        raise GrammarError(f"cannot compile regex from schema: {problem}")
    return schema
