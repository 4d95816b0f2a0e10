"""One seed of the miniature: an encoder, a run, and a language model trained on text for each transfer method."""

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from examples.describe_image import answers
from examples.train_vlm import Projector, VisionLanguageModel, train
from generation.builders.build import build
from generation.embed import make_text_embeddings
from generation.encoders import load_encoder
from generation.files import parquet
from generation.loader import UnicornDataset, apply_to_images, image_mean
from generation.logs import say
from generation.recipe import parse_recipe
from generation.rows import row_id, text_hash
from generation.stages import CAPTIONS, SEEDS
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from unicorn_1_2m import Unicorn12M

from .dual_encoder import DIMENSION, train_encoder, word_tokenizer
from .world import ANSWERS, QUESTIONS, Scenes, captions, conversations, draw_scenes, render

METHODS = ("none", "mean_shift", "unicorn", "anchor", "realign", "c3")
NOT_CENTRED = "unicorn, pictures not centred"
REAL, SHUFFLED = "real picture vectors (upper bound)", "shuffled vectors (lower bound)"
SMALLEST_GAP = 0.5  # between the means: real encoders have 0.6 to 0.9, and less cannot tell methods apart
IMAGE_TOKENS, LEARNING_RATE, BATCH_ROWS = 2, 2e-3, 64  # of the language models


class Replaced(Dataset[dict[str, Any]]):
    """The rows of a data set with other vectors [n, d], by id."""

    def __init__(self, dataset: UnicornDataset, vectors: torch.Tensor) -> None:
        self.dataset, self.vectors, self.set_epoch = dataset, vectors, dataset.set_epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return a batch of rows."""
        batch = self.dataset.__getitems__(rows)
        return batch | {"embeds": self.vectors[[int(id) for id in batch["id"]]]}


def one_seed(folder: Path, seed: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Return the ``rows`` of the table, the ``gap``, and pictures with the default method's answers.

    ``sizes``: ``pairs`` and ``steps`` of the encoder (one in ``folder`` is used again); ``texts`` and ``epochs`` of
    the language models; ``album``, pictures that belong to no text; held-out ``pictures``.
    """
    rng = np.random.default_rng([seed, 0])
    if not (folder / "encoder" / "config.json").is_file():
        scenes = draw_scenes(sizes["pairs"], rng)
        train_encoder(folder / "encoder", render(scenes, rng), captions(scenes, rng, False), sizes["steps"], seed)
    rng = np.random.default_rng([seed, 1])
    scenes, held_out, album = (draw_scenes(sizes[name], rng) for name in ("texts", "pictures", "album"))
    run = write_run(folder / "run", captions(scenes, rng, True), conversations(scenes, rng))
    make_text_embeddings(run)
    make_image_embeddings(run)
    build(Unicorn12M, run.path, folder / "unicorn-1.2m")
    encoder, pictures = load_encoder(run.recipe.embed, run.recipe.directory), render(held_out, rng)
    seen, unpaired, same = (
        encoder.encode_images([Image.fromarray(picture) for picture in drawn])
        for drawn in (pictures, render(album, rng), render(scenes, rng))
    )  # float32 [n, d]: held out; of no text; of the training texts, for the upper bound only
    pairs = encoder.encode(captions(held_out, rng, True))  # texts of the held-out pictures, to measure the gap only
    for name, vectors in {"texts": pairs, "pictures": seen, "album": unpaired}.items():
        np.save(folder / f"{name}.npy", vectors.numpy())  # for `python -m generation report --images --pairs`
    gap, cosine = float((pairs.mean(0) - seen.mean(0)).norm()), float((pairs * seen).sum(1).mean())
    say(f"seed {seed}: means {gap:.2f} apart, paired cosine {cosine:.2f}")
    if gap < SMALLEST_GAP:
        sys.exit(
            f"error: the means of texts and pictures are {gap:.2f} apart; below {SMALLEST_GAP} methods look equal"
        )
    rows: dict[str, dict[str, float]] = {}
    kept: dict[str, list[str]] = {}
    for method in (*METHODS, REAL, SHUFFLED):
        moves: dict[str, Any] = {"transfer": method, "images": unpaired} if method in METHODS else {}
        data = UnicornDataset(folder / "unicorn-1.2m", cache=folder / "cache", seed=seed, **moves)
        order = np.random.default_rng([seed, 2]).permutation(len(data))
        other = same if method == REAL else data.__getitems__(order)["embeds"].float()
        treated = seen if method == REAL else apply_to_images(seen, data.statistics, image_mean(unpaired)[0])
        learned = data if method in METHODS else Replaced(data, other)
        model, tokenizer = language_model(learned, folder, seed, sizes["epochs"])
        for name, shown in {method: treated, **({NOT_CENTRED: seen} if method == "unicorn" else {})}.items():
            said = {what: answers(model, tokenizer, shown, asked[0], 2) for what, asked in QUESTIONS.items()}
            rows[name] = scores(said, held_out) | (distances(data, pairs, shown) if method in METHODS else {})
            kept = said if name == "unicorn" else kept
            say(f"seed {seed}, {name}: { {key: round(value, 2) for key, value in rows[name].items()} }")
    return {"rows": rows, "gap": gap, "pictures": pictures, "scenes": held_out, "answers": kept}


def write_run(path: Path, texts: list[str], talks: list[list[dict[str, str]]]) -> Run:
    """Return a run whose captions are the made ones, each with its own conversation."""
    count, seeds = len(texts), [{"name": "made", "path": "made.txt", "license": "Apache-2.0"}]
    recipe = {"directory": str(path.parent.resolve()), "seeds": {"captions": seeds}, "embed": {"encoder": "encoder"}}
    run = Run(path, parse_recipe({"name": "miniature", **recipe}, "miniature"), create=True)
    columns: dict[str, list[Any]] = {"id": [row_id(0, row) for row in range(count)], "seed": texts}
    columns |= {
        "source": ["made"] * count,
        "license": ["Apache-2.0"] * count,
        "caption": texts,
        "conversations": talks,
    }
    columns |= {"instruction": ["<image>\nDescribe the picture."] * count, "words": [len(t.split()) for t in texts]}
    columns |= {"input_hash": list(map(text_hash, texts)), "prompt": ["made@1.0.0"] * count, "model": ["made"] * count}
    for stage in (SEEDS, CAPTIONS):
        run.begin(stage, {"model": "made"})
        assert stage.schema is not None
        known = {field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in stage.schema}
        if run.is_due(stage, 0):
            run.commit(stage, 0, count, parquet(pa.table(known, stage.schema)))
    return run


def language_model(data: Any, folder: Path, seed: int, epochs: int) -> tuple[VisionLanguageModel, Any]:
    """Return a small language model from scratch that learned the conversations of ``data``, and its tokenizer."""
    words = [*(text for asked in QUESTIONS.values() for text in asked), "USER: ASSISTANT:"]
    words += [answer for values in ANSWERS.values() for answer in values]
    inner, make = word_tokenizer(words, ["<s>", "</s>"], "$A"), PreTrainedTokenizerFast
    tokenizer: Any = make(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
    tokenizer.encode = lru_cache(None)(tokenizer.encode)  # the same few texts in all conversations
    set_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
    shape |= {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    model = VisionLanguageModel(LlamaForCausalLM(LlamaConfig(**shape)), Projector(DIMENSION, IMAGE_TOKENS, 96))
    settings: dict[str, Any] = {"num_train_epochs": epochs, "per_device_train_batch_size": BATCH_ROWS, "seed": seed}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    train(model, tokenizer, data, folder / "checkpoints", LEARNING_RATE, **settings)
    return model.eval(), tokenizer


def scores(said: dict[str, list[str]], scenes: Scenes) -> dict[str, float]:
    """Return the share of right answers for each attribute."""
    return {
        name: float(np.mean([text == values[value] for text, value in zip(said[name], column, strict=True)]))
        for (name, values), column in zip(ANSWERS.items(), scenes.T, strict=True)
    }


def distances(data: UnicornDataset, texts: torch.Tensor, pictures: torch.Tensor) -> dict[str, float]:
    """Return the distance of the means and the mean cosine of held-out pairs: moved texts and treated pictures."""
    moved = data.statistics.move(texts.clone(), range(len(texts)) if data.statistics.facts["noise"] else ())
    distance, cosine = (moved.mean(0) - pictures.mean(0)).norm(), cosine_similarity(moved, pictures).mean()
    return {"distance": float(distance), "cosine": float(cosine)}
