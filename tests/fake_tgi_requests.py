"""What the fake TGI server takes: a body's fields, and the router's validation of the call they make.

References are to the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.fake_tgi_answers import NO_TOOL, Grammar, GrammarError, checked_grammar, render_chat, token_id, tokenize

BLOCK = 1024  # tokens that the backend is asked for at once (section 1.6)
MAX_CLIENT_BATCH = 4
MAX_INPUT_TOKENS = 3072
MAX_TOTAL_TOKENS = 4096
MAX_STOPS = 4
MAX_BEST_OF = 2
MAX_TOP_N_TOKENS = 5


class Refusal(Exception):
    """An error answer: JSON {error, error_type} (section 2.1), or text where `error_type` is None (section 2.2)."""

    def __init__(self, status: int, error: str, error_type: str | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.error_type = status, error, error_type


class Mismatch(Exception):
    """The body does not fit the target type; the text serde gives, without its position (section 2.2)."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}" if where else problem)


def invalid(problem: str) -> Refusal:
    """A permanent refusal by the router's validation (section 2.1)."""
    return Refusal(422, f"Input validation error: {problem}", "validation")


def failed(problem: str) -> Refusal:
    """A failure of the shard (section 2.1)."""
    return Refusal(424, f"Request failed during generation: Server error: {problem}", "generation")


def _within(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value < high


# serde's name for the expected type, and the test; "?" after a kind means that null is accepted too
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("a boolean", lambda v: isinstance(v, bool)),
    "string": ("a string", lambda v: isinstance(v, str)),
    "f32": ("f32", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "i32": ("i32", _within(-(2**31), 2**31)),
    "u32": ("u32", _within(0, 2**32)),
    "u64": ("u64", _within(0, 2**64)),
    "usize": ("usize", _within(0, 2**64)),
    "array": ("a sequence", lambda v: isinstance(v, list)),
    "map": ("a map", lambda v: isinstance(v, dict)),
}
_PARAMETERS = {
    "best_of": "usize?",
    "temperature": "f32?",
    "repetition_penalty": "f32?",
    "frequency_penalty": "f32?",
    "top_k": "i32?",
    "top_p": "f32?",
    "typical_p": "f32?",
    "do_sample": "bool",
    "max_new_tokens": "u32?",
    "return_full_text": "bool?",
    "stop": "array of string",
    "truncate": "usize?",
    "watermark": "bool",
    "details": "bool",
    "decoder_input_details": "bool",
    "seed": "u64?",
    "top_n_tokens": "u32?",
    "grammar": "map?",
    "adapter_id": "string?",
}
_CHAT = {
    "messages": "array of map",
    "model": "string?",
    "max_tokens": "u32?",
    "max_completion_tokens": "u32?",
    "temperature": "f32?",
    "top_p": "f32?",
    "frequency_penalty": "f32?",
    "presence_penalty": "f32?",
    "seed": "u64?",
    "stop": "array of string?",
    "logit_bias": "array of f32?",
    "n": "u32?",
    "user": "string?",
    "logprobs": "bool?",
    "top_logprobs": "u32?",
    "stream": "bool",
    "stream_options": "map",
    "tools": "array of map?",
    "tool_prompt": "string?",
    "response_format": "map?",
}
_COMPLETION = {
    "model": "string?",
    "max_tokens": "u32?",
    "temperature": "f32?",
    "top_p": "f32?",
    "frequency_penalty": "f32?",
    "repetition_penalty": "f32?",
    "seed": "u64?",
    "stop": "array of string?",
    "stream": "bool",
    "suffix": "string?",
}
Family = Literal["native", "compat", "chat", "completions", "vertex"]


def check(value: Any, kind: str, where: str) -> None:
    """One field against its kind, such as "u32?" or "array of string" (sections 1.1 and 1.2)."""
    if value is None and kind.endswith("?"):
        return
    outer, _, inner = kind.removesuffix("?").partition(" of ")
    expected, fits = _KINDS[outer]
    if not fits(value):
        fault = "value" if type(value) is int and expected == outer else "type"  # an integer out of range
        raise Mismatch(where, f"invalid {fault}: {_unexpected(value)}, expected {expected}")
    for index, item in enumerate(value if inner else ()):
        check(item, inner, f"{where}[{index}]")


def _unexpected(value: Any) -> str:
    """serde's words for what it found."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{json.dumps(value)}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
    return "sequence" if isinstance(value, list) else "map"


def _fields(body: Mapping[str, Any], kinds: Mapping[str, str], where: str = "", required: Iterable[str] = ()) -> None:
    for name, kind in kinds.items():
        if name in body:
            check(body[name], kind, f"{where}{name}")
    for name in required:
        if name not in body:
            raise Mismatch(where.removesuffix("."), f"missing field `{name}`")


def _grammar_fields(grammar: Mapping[str, Any] | None, where: str) -> None:
    """The tagged enum GrammarType, row by row of the table in section 1.5."""
    if grammar is None:
        return
    _fields(grammar, {"type": "string"}, f"{where}.", ["type"])
    kinds = ("json", "json_object", "regex", "json_schema")
    if grammar["type"] not in kinds:
        known = ", ".join(f"`{kind}`" for kind in kinds)
        raise Mismatch(f"{where}.type", f"unknown variant `{grammar['type']}`, expected one of {known}")
    kind = {"regex": "string", "json_schema": "map"}.get(grammar["type"])
    _fields(grammar, {"value": kind} if kind else {}, f"{where}.", ["value"])
    if grammar["type"] == "json_schema":
        _fields(grammar["value"], {"name": "string?"}, f"{where}.value.", ["schema"])


def _message_fields(message: Mapping[str, Any], where: str) -> None:
    _fields(message, {"role": "string", "name": "string?"}, f"{where}.", ["role"])
    content = message.get("content")
    fits = all(map(_is_chunk, content)) if isinstance(content, list) else isinstance(content, str)
    if not (fits or isinstance(message.get("tool_calls"), list)):
        raise Mismatch(where, "data did not match any variant of untagged enum MessageBody")


def _is_chunk(chunk: Any) -> bool:
    match chunk:
        case {"type": "text", "text": str()} | {"type": "image_url", "image_url": {"url": str()}}:
            return True
    return False


@dataclass(frozen=True)
class Call:
    """A deserialized request for one generation, in the native parameters' names."""

    prompt: str
    parameters: Mapping[str, Any]
    stream: bool = False

    @property
    def sampled(self) -> bool:
        """The sampling rule of section 1.1; a greedy answer reports no seed."""
        p = self.parameters
        warm = p.get("temperature") not in (None, 1.0)
        return bool(p.get("do_sample") or warm or any(p.get(k) is not None for k in ("top_k", "top_p", "typical_p")))

    @property
    def seed(self) -> int | None:
        """The seed reported in `details`; one not given is made from the prompt, where TGI draws it."""
        given = self.parameters.get("seed")
        return (token_id(self.prompt) if given is None else int(given)) if self.sampled else None


@dataclass(frozen=True)
class Asked:
    """A whole request: the family decides on the shape of its answer."""

    family: Family
    calls: tuple[Call, ...]
    body: Mapping[str, Any]
    tools: bool = False  # the answer is to be the call of a tool

    @property
    def stream(self) -> bool:
        """Whether server-sent events are wanted."""
        return self.calls[0].stream


def parse_generate(body: Mapping[str, Any], path: str) -> Asked:
    """GenerateRequest, and CompatGenerateRequest on `/` (section 1.1)."""
    kinds = {"inputs": "string", "parameters": "map"} | ({"stream": "bool"} if path == "/" else {})
    _fields(body, kinds, required=["inputs"])
    parameters = dict(body.get("parameters", {}))  # do_sample without parameters shows nowhere
    _fields(parameters, _PARAMETERS, "parameters.")
    _grammar_fields(parameters.get("grammar"), "parameters.grammar")
    if path == "/" and parameters.get("return_full_text") is None:
        parameters["return_full_text"] = True  # the default for pipeline_tag text-generation
    stream = path == "/generate_stream" or (path == "/" and body.get("stream", False))
    return Asked("compat" if path == "/" else "native", (Call(body["inputs"], parameters, stream),), body)


def parse_chat(body: Mapping[str, Any], path: str) -> Asked:
    """ChatRequest and its way into a GenerateRequest (section 1.2)."""
    if {"max_tokens", "max_completion_tokens"} <= body.keys():
        raise Mismatch("", "duplicate field `max_tokens`")
    _fields(body, _CHAT, required=["messages"])
    _fields(body.get("stream_options", {}), {"include_usage": "bool"}, "stream_options.")
    _grammar_fields(body.get("response_format"), "response_format")
    for index, message in enumerate(body["messages"]):
        _message_fields(message, f"messages[{index}]")
    grammar, tools = body.get("response_format"), _tool_grammar(body)
    if body.get("tools") is not None and grammar is not None:
        raise Refusal(422, "Tool error: Grammar and tools are mutually exclusive", "tool_error")
    if tools is not None and body.get("stream"):
        raise Refusal(422, "Tool error: this fake does not stream the calls of tools", "tool_error")
    presence = body.get("presence_penalty")
    parameters = _openai_parameters(body) | {
        "max_new_tokens": body.get("max_tokens", body.get("max_completion_tokens")),
        "repetition_penalty": None if presence is None else presence + 2.0,
        "grammar": grammar or tools,
        "top_n_tokens": body.get("top_logprobs"),
    }
    call = Call(render_chat(body["messages"]), parameters, body.get("stream", False))
    return Asked("chat", (call,), body, tools=tools is not None)


def _openai_parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    """What both OpenAI routes take over: temperature 0 is greedy, none is sampling at 1.0 (section 1.2)."""
    names = ("top_p", "frequency_penalty", "seed")
    return {name: body.get(name) for name in names} | {
        "do_sample": body.get("temperature") != 0,
        "temperature": body.get("temperature") or None,
        "stop": body.get("stop") or [],
        "details": True,
    }


def _tool_grammar(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one JSON grammar that the tools make; `auto` adds the choice of none (section 1.5)."""
    functions: dict[str, Mapping[str, Any]] = {}
    for index, tool in enumerate(body.get("tools") or ()):
        where = f"tools[{index}]"
        _fields(tool, {"type": "string", "function": "map"}, f"{where}.", ["type", "function"])
        _fields(tool["function"], {"name": "string"}, f"{where}.function.", ["name"])
        functions[tool["function"]["name"]] = tool["function"].get("parameters") or {}
    match body.get("tool_choice") or "auto":
        case "auto":
            names = [*functions, NO_TOOL]
        case "required":
            names = [*functions]
        case str(name) | {"function": {"name": str(name)}}:
            names = [name]
        case _:
            raise Mismatch("tool_choice", "data did not match any variant of untagged enum ToolType")
    if not functions or names == ["none"]:
        return None
    if unknown := set(names) - {*functions, NO_TOOL}:
        raise Refusal(422, f"Tool error: Tool with name {unknown.pop()} not found", "tool_error")
    options = [
        {
            "type": "object",
            "properties": {"_name": {"const": name}, **functions.get(name, {}).get("properties", {})},
            "required": ["_name", *functions.get(name, {}).get("required", ())],
        }
        for name in names
    ]
    schema = {"type": "object", "properties": {"function": {"anyOf": options}}, "required": ["function"]}
    return {"type": "json", "value": schema}


def parse_completion(body: Mapping[str, Any], path: str) -> Asked:
    """CompletionRequest: one call for each prompt (section 1.3)."""
    _fields(body, _COMPLETION, required=["prompt"])
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    check(prompts, "array of string", "prompt")
    if not prompts:
        raise Mismatch("prompt", "an empty array of prompts")
    if body.get("suffix") is not None:
        raise Refusal(422, "Suffix is not supported.", "suffix not supported")
    if len(prompts) > MAX_CLIENT_BATCH:
        raise Refusal(422, f"At most {MAX_CLIENT_BATCH} prompts are taken at once", "batch size exceeded")
    stream = body.get("stream", False)
    parameters = _openai_parameters(body) | {
        "max_new_tokens": body.get("max_tokens"),
        "repetition_penalty": body.get("repetition_penalty"),
        "decoder_input_details": not stream,
    }
    return Asked("completions", tuple(Call(prompt, parameters, stream) for prompt in prompts), body)


def parse_invocations(body: Mapping[str, Any], path: str) -> Asked:
    """The untagged union of SageMaker's route, tried in order (section 1.0)."""
    return _first_that_fits(body, (parse_generate, parse_chat, parse_completion), "/", "SagemakerRequest")


def parse_vertex(body: Mapping[str, Any], path: str) -> Asked:
    """Vertex's instances, each with `inputs` or `messages`; at least one (sections 1.0 and 2.1)."""
    _fields(body, {"instances": "array of map"}, required=["instances"])
    if not body["instances"]:
        raise Refusal(422, "Input validation error", "Input validation error")
    each = [
        _first_that_fits(instance, (parse_generate, parse_chat), "/generate", "VertexInstance")
        for instance in body["instances"]
    ]
    calls = tuple(Call(call.prompt, call.parameters) for asked in each for call in asked.calls)
    return Asked("vertex", calls, body)


def _first_that_fits(
    body: Mapping[str, Any], parsers: Iterable[Callable[[Mapping[str, Any], str], Asked]], path: str, union: str
) -> Asked:
    for parse in parsers:
        try:
            return parse(body, path)
        except Mismatch:
            continue
    raise Mismatch("", f"data did not match any variant of untagged enum {union}")


@dataclass(frozen=True)
class Valid:
    """A call that passed the router's validation."""

    prompt: str  # after truncation
    input_length: int
    max_new_tokens: int  # of all blocks together
    grammar: Grammar | None


def validate(call: Call) -> Valid:
    """The router's checks in its order: parameters, input, grammar (validation.rs; sections 1.1, 1.6, 2.1)."""
    parameters = {name: value for name, value in call.parameters.items() if value is not None}
    if problem := _parameter_problem(call, parameters):
        raise invalid(problem)
    tokens = tokenize(call.prompt)
    tokens = tokens[-parameters.get("truncate", len(tokens)) :]
    allowed = parameters.get("max_new_tokens", max(0, MAX_TOTAL_TOKENS - len(tokens)))
    if len(tokens) + min(allowed, BLOCK) > MAX_TOTAL_TOKENS:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {MAX_TOTAL_TOKENS}. "
            f"Given: {len(tokens)} `inputs` tokens and {min(allowed, BLOCK)} `max_new_tokens`"
        )
    if len(tokens) > MAX_INPUT_TOKENS:
        raise invalid(f"`inputs` must have less than {MAX_INPUT_TOKENS} tokens. Given: {len(tokens)}")
    try:
        grammar = checked_grammar(parameters["grammar"]) if "grammar" in parameters else None
    except GrammarError as error:
        raise invalid(str(error)) from None
    return Valid("".join(tokens), len(tokens), allowed, grammar)


def _parameter_problem(call: Call, p: Mapping[str, Any]) -> str | None:
    """The first rule broken (the limits of section 1.1)."""
    stops, truncate = len(p.get("stop", [])), p.get("truncate", 1)
    best_of, top_n = p.get("best_of", 1), p.get("top_n_tokens", 0)
    rules = {
        "`best_of` != 1 is not supported when streaming tokens": not call.stream or best_of == 1,
        "`decoder_input_details` == true is not supported when streaming tokens": not (
            call.stream and p.get("decoder_input_details")
        ),
        f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}": best_of <= MAX_BEST_OF,
        "you must use sampling when `best_of` is > 1": best_of <= 1 or call.sampled,
        "`temperature` must be strictly positive": p.get("temperature", 1.0) > 0,
        "`repetition_penalty` must be strictly positive": p.get("repetition_penalty", 1.0) > 0,
        "`frequency_penalty` must be >= -2.0 and <= 2.0": -2.0 <= p.get("frequency_penalty", 0.0) <= 2.0,
        "`top_p` must be > 0.0 and < 1.0": 0.0 < p.get("top_p", 0.5) < 1.0,
        "`typical_p` must be > 0.0 and < 1.0": 0.0 < p.get("typical_p", 0.5) < 1.0,
        "`top_k` must be strictly positive": p.get("top_k", 1) > 0,
        "`max_new_tokens` must be strictly positive": p.get("max_new_tokens", 1) > 0,
        f"`stop` supports up to {MAX_STOPS} stop sequences. Given: {stops}": stops <= MAX_STOPS,
        "`seed` must not be set when `best_of` > 1": best_of <= 1 or "seed" not in p,
        f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_N_TOKENS}. Given: {top_n}": top_n <= MAX_TOP_N_TOKENS,
        "`inputs` cannot be empty": call.prompt != "",
        f"`truncate` must be strictly positive and less than {MAX_INPUT_TOKENS}. Given: {truncate}": (
            0 < truncate <= MAX_INPUT_TOKENS
        ),
    }
    return next((problem for problem, kept in rules.items() if not kept), None)
