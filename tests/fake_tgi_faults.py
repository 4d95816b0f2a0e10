"""What goes wrong at the fake TGI server, and when: at given requests, or at a share of all of them.

References are to the TGI fact sheet (tgi-facts.md).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tests.fake_tgi_requests import Refusal, failed, invalid

FaultKind = Literal[
    "overloaded",  # 429, no permit
    "generation",  # 424, the shard failed at this request alone
    "batch",  # 424 to this request and to every one that runs with it
    "incomplete",  # 500, the shard vanished
    "unavailable",  # 503 with a text body, as a proxy gives
    "empty_429",  # no body, as proxies and load balancers give
    "empty_500",
    "empty_502",
    "unauthorized",  # 401, no body
    "validation",  # 422 JSON
    "deserialize",  # 422 text, of the extractor
    "template",  # 422 JSON, template_error
    "template_variable",  # 422 JSON, missing_template_variable
    "reset",  # socket closed with no answer
    "half",  # headers and half of the body, then closed
    "hang",  # no answer until the client goes; a stream's keep-alive comments go on
    "truncated_json",  # 200, cut in the middle, finish_reason length
    "garbage",  # 200, empty string
    "miscount",  # 200, token counts in the body that the headers contradict
]
KINDS: tuple[str, ...] = get_args(FaultKind)


@dataclass(frozen=True)
class Fault:
    """What goes wrong (section 2) at which generation requests: ordinals from 0, in order of arrival.

    A request refused for its key is not counted; one whose body does not fit is, and gets its own error.
    """

    kind: FaultKind
    at: frozenset[int] | set[int]


class FaultScript:
    """Which fault, if any, the next request meets: a listed one, else one of ``kinds`` at the given rate."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self.given: Counter[str] = Counter()
        self._listed = {ordinal: fault.kind for fault in faults for ordinal in fault.at}
        self._arrived = 0
        self._random = random.Random(seed)

    def next(self, rate: float, kinds: Iterable[str]) -> str | None:
        """The fault of the request that arrives now."""
        kind: str | None = self._listed.get(self._arrived)
        self._arrived += 1
        if kind is None and self._random.random() < rate:
            kind = self._random.choice(tuple(kinds))
        if kind is not None:
            self.given[kind] += 1
        return kind


def refuse_early(fault: str | None) -> None:
    """The error answers that come before a permit is tried, also to a stream (sections 2.2 and 2.3)."""
    match fault:
        case "unavailable":
            raise Refusal(503, "upstream connect error or disconnect/reset before headers")
        case "empty_429" | "empty_500" | "empty_502":
            raise Refusal(int(fault[-3:]), "")
        case "unauthorized":
            raise Refusal(401, "")
        case "deserialize":
            where = "scripted: missing field `scripted` at line 1 column 1"
            raise Refusal(422, f"Failed to deserialize the JSON body into the target type: {where}")
        case "template":
            raise Refusal(422, "Template error: scripted", "template_error")
        case "template_variable":
            raise Refusal(422, "Missing template vatiable: scripted", "missing_template_variable")  # sic


def refuse_late(fault: str | None, stream: bool) -> None:
    """The error answers of a request that holds a permit, which a stream gives as an event (sections 2.1 and 2.3)."""
    match fault:
        case "generation":
            raise failed("scripted")
        case "validation":
            raise invalid("scripted")
        case "incomplete" if stream:
            raise Refusal(500, "Incomplete generation stream", "incomplete_generation_stream")
        case "incomplete":
            raise Refusal(500, "Incomplete generation", "incomplete_generation")


def miscount(body: Any) -> Any:
    """The body with seven prompt tokens and three generated ones too many, which its headers do not show."""
    if isinstance(body, list):
        return [miscount(part) for part in body]
    for name, more in (("prompt_tokens", 7), ("completion_tokens", 3), ("total_tokens", 10)):
        if "usage" in body:
            body["usage"][name] += more
    if "details" in body:
        body["details"]["generated_tokens"] += 3
    return body
