"""In which shape the fake TGI server says it: bodies and stream events of every route, without HTTP.

References are to the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from tests.fake_tgi_answers import EOS, Generation, token_id, tokenize


def simple_tokens(text: str) -> list[dict[str, Any]]:
    """The body of /tokenize (section 1.4); no special token is added, as with Qwen."""
    out: list[dict[str, Any]] = []
    for token in tokenize(text):
        start = out[-1]["stop"] if out else 0
        out.append({"id": token_id(token), "text": token, "start": start, "stop": start + len(token)})
    return out


def _token(token: str) -> dict[str, Any]:
    return {"id": token_id(token), "text": token, "logprob": -0.25, "special": token == EOS}


def native_body(
    generation: Generation, prompt: str, parameters: Mapping[str, Any], seed: int | None
) -> dict[str, Any]:
    """GenerateResponse (section 1.1)."""
    text = (prompt if parameters.get("return_full_text") else "") + generation.text
    if not (parameters.get("details") or parameters.get("decoder_input_details")):
        return {"generated_text": text}
    details: dict[str, Any] = {
        "finish_reason": generation.finish_reason,
        "generated_tokens": len(generation.tokens),
        "seed": seed,
        "prefill": [],
        "tokens": [_token(token) for token in generation.tokens],
    }
    if parameters.get("top_n_tokens"):
        details["top_tokens"] = [[token] for token in details["tokens"]]
    if others := (parameters.get("best_of") or 1) - 1:
        details["best_of_sequences"] = [{"generated_text": text, **details} for _ in range(others)]
    return {"generated_text": text, "details": details}


def native_events(
    generation: Generation, prompt: str, parameters: Mapping[str, Any], seed: int | None, input_length: int
) -> list[dict[str, Any]]:
    """StreamResponse, one a token, numbered from 1; text and details in the last (section 1.1)."""
    events: list[dict[str, Any]] = []
    for index, token in enumerate(generation.tokens, start=1):
        events.append({"index": index, "token": _token(token), "generated_text": None, "details": None})
        if parameters.get("top_n_tokens"):
            events[-1]["top_tokens"] = [_token(token)]
    events[-1]["generated_text"] = (prompt if parameters.get("return_full_text") else "") + generation.text
    if parameters.get("details"):
        events[-1]["details"] = {
            "finish_reason": generation.finish_reason,
            "generated_tokens": len(generation.tokens),
            "seed": seed,
            "input_length": input_length,
        }
    return events


def _chat_finish(generation: Generation) -> str:
    return "stop" if generation.finish_reason == "eos_token" else generation.finish_reason


def _usage(generation: Generation, input_length: int) -> dict[str, int]:
    count = len(generation.tokens)
    return {"prompt_tokens": input_length, "completion_tokens": count, "total_tokens": input_length + count}


def _logprobs(tokens: Iterable[str], wanted: bool) -> dict[str, Any] | None:
    content = [{"token": token, "logprob": -0.25, "top_logprobs": []} for token in tokens]
    return {"content": content} if wanted else None


def chat_body(head: Mapping[str, Any], generation: Generation, input_length: int, logprobs: bool) -> dict[str, Any]:
    """ChatCompletion (section 1.2)."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": generation.text},
        "logprobs": _logprobs(generation.tokens, logprobs),
        "finish_reason": _chat_finish(generation),
    }
    usage = _usage(generation, input_length)
    return {"object": "chat.completion", **head, "choices": [choice], "usage": usage}


def chat_chunks(
    head: Mapping[str, Any], generation: Generation, input_length: int, logprobs: bool, include_usage: bool
) -> list[dict[str, Any]]:
    """ChatCompletionChunk, one a token with the role in each, then usage on demand (section 1.2)."""
    head = {"object": "chat.completion.chunk", **head}
    chunks: list[dict[str, Any]] = []
    for token in generation.tokens:
        delta = {"role": "assistant", "content": "" if token == EOS else token}
        choice = {"index": 0, "delta": delta, "logprobs": _logprobs([token], logprobs), "finish_reason": None}
        chunks.append({**head, "choices": [choice], "usage": None})
    chunks[-1]["choices"][0]["finish_reason"] = _chat_finish(generation)
    if include_usage:
        chunks.append({**head, "choices": [], "usage": _usage(generation, input_length)})
    return chunks


def tool_body(head: Mapping[str, Any], generation: Generation, input_length: int) -> dict[str, Any]:
    """ChatCompletion with the call of the tool that the grammar made, or of none (section 1.2)."""
    arguments = dict(json.loads(generation.text)["function"])
    function = {"description": None, "name": arguments.pop("_name"), "arguments": json.dumps(arguments)}
    body = chat_body(head, generation, input_length, logprobs=False)
    call = {"id": "0", "type": "function", "function": function}
    body["choices"][0]["message"] = {"role": "assistant", "tool_calls": [call]}
    return body


def completion_body(head: Mapping[str, Any], made: Sequence[tuple[Generation, int]]) -> dict[str, Any]:
    """Completion, its choices in the order in which they were done: the shortest first (section 1.3)."""
    done = sorted(enumerate(made), key=lambda choice: (len(choice[1][0].tokens), choice[0]))
    choices = [
        {"index": index, "text": generation.text, "logprobs": None, "finish_reason": _chat_finish(generation)}
        for index, (generation, _) in done
    ]
    usages = [_usage(*choice) for choice in made]
    usage = {name: sum(one[name] for one in usages) for name in usages[0]}
    return {"object": "text_completion", **head, "choices": choices, "usage": usage}


def completion_chunks(head: Mapping[str, Any], made: Sequence[Generation]) -> list[dict[str, Any]]:
    """Completion chunks, one a token, the prompts' mixed; the reason is empty before the end (section 1.3)."""
    chunks: list[dict[str, Any]] = []
    for place, tokens in enumerate(zip_longest(*(generation.tokens for generation in made))):
        for index, (token, generation) in enumerate(zip(tokens, made, strict=True)):
            if token is None:
                continue
            reason = generation.finish_reason if place == len(generation.tokens) - 1 else ""
            text = "" if token == EOS else token
            choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            chunks.append({"object": "text_completion", **head, "choices": [choice]})
    return chunks
