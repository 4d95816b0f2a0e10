"""Prompts as versioned data: one YAML file a prompt, beside this one.

A file holds ``id``, ``version`` (semantic: major = another task or output, minor = wording that moves the output,
patch = none of both), ``changelog``, the templates ``system`` (optional), ``user`` and ``answer_prefix`` (optional),
few-shot ``examples``, ``sampling``, the JSON ``schema`` of the answer (optional), ``question_kinds`` (of which each
request asks for a few that are drawn for it, as the field ``{kinds}``) and ``warm_up`` values. A template names its
fields as ``{field}``; a value is put in once, as data: braces or instructions inside it change nothing.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..config import STRICT
from ..errors import RecipeError
from ..records import draw
from ..validation import read_yaml, validate

PROMPTS = Path(__file__).parent
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sampling:
    """Sampling parameters that TGI, vLLM, SGLang and llama.cpp take alike; all are always sent."""

    max_tokens: Annotated[int, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0, le=2)]
    top_p: Annotated[float, Field(gt=0, lt=1)]  # TGI refuses 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Example:
    """One few-shot exchange: the user template's values, and the answer (text, or JSON where there is a schema)."""

    values: dict[str, str]
    answer: Any


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prompt:
    """A prompt, ready to be rendered."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    changelog: tuple[str, ...]
    user: str
    sampling: Sampling
    warm_up: dict[str, str]
    system: str | None = None
    answer_prefix: str | None = None
    examples: tuple[Example, ...] = ()
    schema: dict[str, Any] | None = None
    question_kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``id@version``, as rows and cards cite it."""
        return f"{self.id}@{self.version}"

    @property
    def sha256(self) -> str:
        """The hash of everything that can move the output: all but the changelog and the warm-up values."""
        content = {key: value for key, value in asdict(self).items() if key not in ("changelog", "warm_up")}
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def messages(self, values: Mapping[str, str]) -> list[Message]:
        """The conversation to be sent; it ends with an assistant turn where the prompt has an ``answer_prefix``."""
        turns = [_turn("system", render(self.system, values))] if self.system else []
        for example in self.examples:
            answer = example.answer if isinstance(example.answer, str) else json.dumps(example.answer)
            turns += [_turn("user", render(self.user, {**values, **example.values})), _turn("assistant", answer)]
        turns.append(_turn("user", render(self.user, values)))
        if self.answer_prefix:
            turns.append(_turn("assistant", self.prefix(values)))
        return turns

    def prefix(self, values: Mapping[str, str]) -> str:
        """What the answer already begins with; empty where the prompt has no ``answer_prefix``."""
        return render(self.answer_prefix or "", values).strip()

    def answer_schema(self, min_items: int, max_items: int) -> dict[str, Any]:
        """The JSON schema of an answer that holds between ``min_items`` and ``max_items`` items.

        Raises:
            RecipeError: the prompt has no schema, or not one array named "QA Pairs".
        """
        try:
            schema: dict[str, Any] = json.loads(json.dumps(self.schema))
            schema["properties"]["QA Pairs"].update(minItems=min_items, maxItems=max_items)
        except (TypeError, KeyError) as error:
            raise RecipeError(f"prompt {self.name}: its schema needs an array property 'QA Pairs'") from error
        return schema

    def draw_kinds(self, count: int, *key: object) -> str:
        """``count`` of the question kinds, or all if there are fewer, in an order that ``key`` draws."""
        kinds = sorted(self.question_kinds, key=lambda kind: draw("kinds", *key, kind))[:count]
        return "; ".join(kinds)


def load_prompt(name: str) -> Prompt:
    """Reads ``<name>.yaml`` of this folder.

    Raises:
        RecipeError: there is no such prompt, a key in it is wrong, or a template names a field that warm_up lacks.
    """
    path = PROMPTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.yaml")))
        raise RecipeError(f"prompt '{name}' does not exist in {PROMPTS}; there are: {known}")
    prompt: Prompt = validate(Prompt, read_yaml(path, "prompt file"), f"prompt file {path}")
    if prompt.id != name:
        raise RecipeError(f"prompt file {path}: its id '{prompt.id}' must be the file's name '{name}'")
    try:
        prompt.messages(prompt.warm_up)
    except RecipeError as error:
        raise RecipeError(f"prompt file {path}: {error} (warm_up must give every field)") from None
    return prompt


def render(template: str, values: Mapping[str, str]) -> str:
    """Puts ``values`` into the ``{field}`` places of ``template``, in one pass, so that no value is read as template.

    Raises:
        RecipeError: the template names a field that has no value.
    """

    def value(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError:
            raise RecipeError(f"template field '{{{match[1]}}}' has no value; known: {', '.join(values)}") from None

    return _FIELD.sub(value, template).strip()


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}
