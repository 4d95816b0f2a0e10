"""The embed stage: what its batches waste, and what a language model of the paper's shape makes of a GPU.

    python -m benchmarks.encoder [--captions 10000] [--budget 8192] [--seconds 20]

Padding: captions of the paper's lengths (51 to 483 words, mean 129), tokenised by the embedded encoder's tokenizer,
in the batches of the pipeline and, beside them, in batches of as many tokens taken in the order given. Speed: a Llama
3 8B with random weights in bfloat16, in both directions, pooled as LLM2CLIP does it, against a large matrix product on
the same card in the same run; without a GPU the same code at a tiny shape. Ends with one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from generation.encoders.batches import token_batches, tokenise
from generation.encoders.llm2clip import both_directions, pooled_states
from generation.encoders.mean_pooling import embedded_model

SEEDS = Path(__file__).parent.parent / "generation" / "seed_data" / "captions.txt"
PAPER_CAPTIONS = 1_243_195
CAPTION_TOKENS = 170  # of 129 words, by Llama 3's tokenizer, about
BEFORE_TOKENS = 5  # of the template
LLAMA_3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
TINY: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def captions(count: int) -> list[str]:
    """Texts of the paper's lengths: a log-normal with its mean, of a width that reaches its extremes once in a
    million, made of bundled seed captions one after the other."""
    draw = np.random.default_rng(0)
    spread = 0.28
    lengths = np.clip(draw.lognormal(np.log(129) - spread**2 / 2, spread, count), 51, 483).round().astype(int)
    words = SEEDS.read_text(encoding="utf-8").split()
    starts = draw.integers(0, len(words) - 483, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def waste(lengths: list[int], batches: Iterator[list[int]]) -> float:
    """The share of padded tokens that are padding."""
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths) / padded


def in_given_order(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Batches of at most ``budget`` padded tokens, of rows in their order."""
    batch: list[int] = []
    for row in range(len(lengths)):
        if batch and (len(batch) + 1) * max(lengths[other] for other in [*batch, row]) > budget:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def padding(count: int, budget: int) -> dict[str, float]:
    """Waste of the pipeline's batches and of those in the order given, and the time that tokens and batches take."""
    texts = captions(count)
    begun = time.perf_counter()
    rows, _ = tokenise(AutoTokenizer.from_pretrained(embedded_model()), texts, 1 << 20)
    tokenised = time.perf_counter()
    lengths = [len(row) for row in rows]
    batches = list(token_batches(lengths, budget))
    sorted_in = time.perf_counter() - tokenised
    largest = [sum(lengths[row] for row in batch) for batch in batches]
    return {
        "words_mean": float(np.mean([len(text.split()) for text in texts])),
        "tokens_mean": float(np.mean(lengths)),
        "waste": waste(lengths, iter(batches)),
        "waste_given_order": waste(lengths, in_given_order(lengths, budget)),
        "batch_fill": float(np.mean(largest[:-1])) / budget,
        "captions_tokenised_per_s": count / (tokenised - begun),
        "captions_batched_per_s": count / sorted_in,
    }


def rate(act: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Calls of ``act`` a second, over about ``seconds``, after two to warm up."""
    act(), act()
    _wait(device)
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        act()
        calls += 1
        _wait(device)
    return calls / (time.perf_counter() - begun)


def speed(budget: int, seconds: float) -> dict[str, float]:
    """Tokens/s of the text tower, its share of the card's matrix product, and hours for the paper's captions."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    size = 8192 if gpu else 1024
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    peak = 2 * size**3 * rate(lambda: matrix @ matrix, device, seconds / 4)
    model = _tower(LLAMA_3_8B if gpu else TINY, device, dtype)
    before = np.arange(BEFORE_TOKENS, dtype=np.int32)
    count = budget // (CAPTION_TOKENS + BEFORE_TOKENS)
    lengths = np.random.default_rng(1).integers(CAPTION_TOKENS - 2, CAPTION_TOKENS + 3, count)  # as sorted ones are
    rows = [np.arange(length, dtype=np.int32) + BEFORE_TOKENS for length in lengths]
    tokens = int(lengths.sum()) + count * BEFORE_TOKENS
    with torch.inference_mode():
        per_s = rate(lambda: pooled_states(model, before, rows), device, seconds)
    work = _flops(model.config, tokens / count) * tokens * per_s
    return {
        "tokens_per_s": tokens * per_s,
        "captions_per_s": count * per_s,
        "tflops": work / 1e12,
        "tflops_matmul": peak / 1e12,
        "share_of_matmul": work / peak,
        "hours_for_the_paper": PAPER_CAPTIONS / (count * per_s) / 3600,
    }


def _tower(shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return both_directions(LlamaModel(LlamaConfig(**shape)).train(False).requires_grad_(False))
        finally:
            torch.set_default_dtype(default)


def _flops(config: Any, length: float) -> float:
    """Of one token of a text of ``length`` tokens: two for each weight of a matrix that it meets, and attention."""
    d, heads = config.hidden_size, config.num_attention_heads
    projections = 2 * d * d + 2 * d * d * config.num_key_value_heads // heads
    weights: int = config.num_hidden_layers * (projections + 3 * d * config.intermediate_size)
    return float(2 * weights + 4 * length * d * config.num_hidden_layers)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Prints both tables, and the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--budget", type=int, default=8192, help="padded tokens in a batch")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing the text tower")
    options = parser.parse_args()
    result: dict[str, Any] = padding(options.captions, options.budget)
    print("| batches | padding |\n|---|---|")
    for name, key in (("ours", "waste"), ("in the order given", "waste_given_order")):
        print(f"| {name} | {result[key]:.2%} |")
    result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if result["device"] == "cpu":
        print("\nno GPU here: a tiny model on the CPU stands in, and its speed says nothing of the paper's")
    result |= speed(options.budget, options.seconds)
    print("\n| text tower | here |\n|---|---|")
    for key in ("tokens_per_s", "tflops", "tflops_matmul", "share_of_matmul", "hours_for_the_paper"):
        print(f"| {key} | {result[key]:,.3f} |")
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
