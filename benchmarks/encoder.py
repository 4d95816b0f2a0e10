"""The embed stage: what its batches waste, and what a language model of LLM2CLIP's shape makes of a GPU.

    python -m benchmarks.encoder [--captions 10000] [--seconds 20]

Padding: captions of the paper's lengths (51 to 483 words, mean 129), tokenised by the embedded encoder's tokenizer, in
the batches of the pipeline and in batches of 32 texts in the order given. Speed: a Llama 3 8B with random weights in
bfloat16, bidirectional, pooled and adapted as LLM2CLIP does it, against a large matrix product on the same GPU in the
same run. Without a GPU the same code runs at a tiny shape on the CPU, and its speed says nothing of the paper's
encoder. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel

from generation.config import Embed
from generation.encoders import load_encoder
from generation.encoders.base import BATCH_TOKENS, token_batches
from generation.encoders.llm2clip import bidirectional, pooled_states, text_adapter

WORDS = Path(__file__).parent.parent / "generation" / "seed_data" / "captions.txt"
PAPER_CAPTIONS = 1_243_195
CAPTION_TOKENS, TEMPLATE_TOKENS = 170, 5  # of 129 words by Llama 3's tokenizer, about; of its template
LLAMA_3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128_256}
LLAMA_3_8B |= {"num_attention_heads": 32, "num_key_value_heads": 8}
TINY = {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4, "vocab_size": 1000}
TINY |= {"num_attention_heads": 8, "num_key_value_heads": 2}
DIMENSION = 1280  # of the paper's vectors


def captions(count: int) -> list[str]:
    """Return texts of the paper's lengths: log-normal with its mean, bundled seed captions one after the other."""
    draw, spread = np.random.default_rng(0), 0.28  # reaches the extremes once in a million
    lengths = np.clip(draw.lognormal(np.log(129) - spread**2 / 2, spread, count), 51, 483).round().astype(int)
    words = WORDS.read_text(encoding="utf-8").split()
    starts = draw.integers(0, len(words) - 483, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def padding(count: int, budget: int) -> dict[str, float]:
    """Return shares of padding, and how many captions a second the CPU makes into tokens."""
    encoder, texts = load_encoder(Embed()), captions(count)
    encoder.max_tokens = 1 << 20
    start = time.perf_counter()
    lengths = [len(row) for row in encoder.tokenise(texts)[0]]
    seconds = time.perf_counter() - start

    def share(batches: list[list[int]]) -> float:
        return 1 - sum(lengths) / sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    return {
        "tokens_mean": float(np.mean(lengths)),
        "padding": share(list(token_batches(lengths, budget))),
        "padding_by_32_rows": share([list(range(first, min(first + 32, count))) for first in range(0, count, 32)]),
        "captions_tokenised_per_s": count / seconds,
    }


def rate(act: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return calls of ``act`` a second, over about ``seconds``, after one to warm up."""
    act()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        calls += 1
    return calls / (time.perf_counter() - start)


def speed(seconds: float) -> dict[str, float]:
    """Return tokens/s of the encoder, its share of a matrix product's speed, and hours for the paper's captions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    dtype, size, shape = (torch.bfloat16, 8192, LLAMA_3_8B) if gpu else (torch.float32, 1024, TINY)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    peak = 2 * size**3 * rate(lambda: matrix @ matrix, device, seconds / 4)
    model, width = language_model(shape, device, dtype), shape["hidden_size"]
    adapter = text_adapter(width, 2 * width, DIMENSION).to_empty(device=device)
    for weight in adapter.parameters():
        weight.normal_()
    length = CAPTION_TOKENS + TEMPLATE_TOKENS
    count = BATCH_TOKENS[device.type] // (length + 2)
    lengths = np.random.default_rng(1).integers(length - 2, length + 3, count)  # alike, since sorted
    rows = [np.arange(tokens, dtype=np.int32) for tokens in lengths]
    with torch.inference_mode():
        batches_per_s = rate(lambda: adapter(pooled_states(model, rows, TEMPLATE_TOKENS)), device, seconds)
    tokens = int(lengths.sum())
    work = flops(shape, length) * tokens * batches_per_s
    return {
        "tokens_per_s": tokens * batches_per_s,
        "captions_per_s": count * batches_per_s,
        "tflops": work / 1e12,
        "tflops_matmul": peak / 1e12,
        "share_of_matmul": work / peak,
        "hours_for_the_paper": PAPER_CAPTIONS / (count * batches_per_s) / 3600,
    }


def language_model(shape: dict[str, int], device: torch.device, dtype: torch.dtype) -> Any:
    """Return a bidirectional Llama with random weights."""
    torch.set_default_dtype(dtype)
    with device:
        model: Any = LlamaModel(LlamaConfig(**shape))  # type: ignore[arg-type]
    torch.set_default_dtype(torch.float32)
    return bidirectional(model.eval().requires_grad_(False))


def flops(shape: dict[str, int], length: int) -> float:
    """Return operations for one token of a text of ``length`` tokens in the language model: two for each weight of a
    matrix that it meets, and attention."""
    d, layers = shape["hidden_size"], shape["num_hidden_layers"]
    projections = 2 * d * d + 2 * d * d * shape["num_key_value_heads"] // shape["num_attention_heads"]
    return float(layers * (2 * (projections + 3 * d * shape["intermediate_size"]) + 4 * length * d))


def main() -> None:
    """Print a table, and its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time the encoder")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, tiny shape"
    figures = padding(options.captions, BATCH_TOKENS["cpu"]) | speed(options.seconds)
    print(f"| figure | {device} |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value:,.4g} |")
    print(json.dumps({"device": device} | {name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
