"""Prompts as versioned data: one YAML file each, in this folder, with the keys of ``Prompt``. A template names its
fields as ``{field}``. Values are inserted once and are never read as templates."""

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..config import Name, Positive, Section
from ..errors import RecipeError
from ..recipe import read_yaml, validate

PROMPTS = Path(__file__).parent
Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}

_FIELD = re.compile(r"\{(\w+)\}")


class Sampling(Section):
    """Sampling parameters that TGI, vLLM, SGLang and llama.cpp share; all of them are always sent."""

    max_tokens: Positive
    temperature: Annotated[float, Field(gt=0, le=2)]
    top_p: Annotated[float, Field(gt=0, lt=1)]  # TGI refuses 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0


class Example(Section):
    """One few-shot exchange: values for the user template, and the answer (text, or JSON if there is a schema)."""

    values: dict[str, str]
    answer: Any


class Prompt(Section):
    """A prompt file, checked and ready to render; ``system``, ``user`` and ``answer_prefix`` are templates."""

    id: Name
    # Major: another task or output format. Minor: wording that changes the output. Patch: neither.
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    changelog: tuple[str, ...]
    user: str
    sampling: Sampling
    warm_up: dict[str, str]  # a value for every field
    system: str | None = None
    answer_prefix: str | None = None  # the text that an answer continues
    examples: tuple[Example, ...] = ()
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")  # of the answer; None: plain text
    question_types: tuple[str, ...] = ()  # from which each request draws its own
    openings: tuple[str, ...] = ()  # likewise

    @property
    def name(self) -> str:
        """``id@version``, as rows and cards cite it."""
        return f"{self.id}@{self.version}"

    @property
    def sha256(self) -> str:
        """Hash of everything that can change the output: all but the changelog and the warm-up values."""
        content = self.model_dump(mode="json", by_alias=True, exclude={"changelog", "warm_up"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def messages(self, values: Mapping[str, str]) -> list[Message]:
        """Return the conversation to send; its end is the beginning of the answer, if the prompt gives one."""
        system = [{"role": "system", "content": render(self.system, values)}] if self.system else []
        begun = [{"role": "assistant", "content": render(self.answer_prefix, values)}] if self.answer_prefix else []
        return [*system, *self.shots, {"role": "user", "content": render(self.user, values)}, *begun]

    @cached_property
    def shots(self) -> list[Message]:
        """The few-shot exchanges, rendered once: an example gives a value for every field."""
        turns = []
        for example in self.examples:
            answer = example.answer if isinstance(example.answer, str) else json.dumps(example.answer)
            turns.append({"role": "user", "content": render(self.user, example.values)})
            turns.append({"role": "assistant", "content": answer})
        return turns

    def answer_schema(self, min_items: int, max_items: int) -> dict[str, Any]:
        """Return the JSON schema of an answer with so many items; a RecipeError says that it has no "QA Pairs"."""
        try:
            schema = deepcopy(self.json_schema or {})
            schema["properties"]["QA Pairs"].update(minItems=min_items, maxItems=max_items)
        except (TypeError, KeyError) as error:
            raise RecipeError(f"prompt {self.name}: its schema needs an array property 'QA Pairs'") from error
        return schema


def load_prompt(name: str) -> Prompt:
    """Return the prompt of ``<name>.yaml`` in this folder; a RecipeError says what is wrong with it."""
    path = PROMPTS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.yaml")))
        raise RecipeError(f"prompt '{name}' does not exist in {PROMPTS}. Prompts there: {known}")
    prompt = validate(Prompt, read_yaml(path, "prompt file"), f"prompt file {path}")
    if prompt.id != name:
        raise RecipeError(f"prompt file {path}: its id '{prompt.id}' must be the file's name, '{name}'")
    try:
        prompt.messages(prompt.warm_up)
    except RecipeError as error:
        raise RecipeError(f"prompt file {path}: {error}. warm_up must give every field") from None
    return prompt


def render(template: str, values: Mapping[str, str]) -> str:
    """Return ``template`` with its ``{field}`` places filled; a RecipeError names a field that has no value."""
    try:
        return _FIELD.sub(lambda field: values[field[1]], template).strip()
    except KeyError as error:
        raise RecipeError(f"template field '{{{error.args[0]}}}' has no value; known: {', '.join(values)}") from None
