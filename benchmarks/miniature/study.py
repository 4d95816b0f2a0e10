"""One seed of the miniature: an encoder, a run, and a language model trained on text for each transfer method."""

import sys
import time
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
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from examples.describe_image import answers
from examples.train_vlm import Projector, VisionLanguageModel, train
from generation.builders.build import build
from generation.embed import make_text_embeddings
from generation.encoders import load_encoder
from generation.files import read_json, write_json
from generation.loader import UnicornDataset, apply_to_images, image_mean
from generation.logs import say
from generation.recipe import parse_recipe
from generation.stages import CAPTIONS, SEEDS, row_id, text_hash
from generation.store import Run, parquet
from generation.transfer.stage import make_image_embeddings
from unicorn_1_2m import Unicorn12M

from .dual_encoder import DIMENSION, train_encoder, word_tokenizer
from .world import ANSWERS, QUESTIONS, Scenes, captions, conversations, draw_scenes, render

METHODS = ("none", "mean_shift", "unicorn", "anchor", "realign", "c3")
NOT_CENTRED = "unicorn, pictures not centred"
REAL, SHUFFLED = "real picture vectors (upper bound)", "shuffled vectors (lower bound)"
ORDER = (SHUFFLED, *METHODS[:3], NOT_CENTRED, *METHODS[3:], REAL)  # of the table
SHOWN = 12  # pictures of the contact sheet
SMALLEST_GAP = 0.5  # between the means: real encoders have 0.6 to 0.9, and less cannot tell methods apart
IMAGE_TOKENS, LEARNING_RATE, BATCH_ROWS = 2, 2e-3, 32  # of the language models
INITIAL = 0.1  # standard deviation of their weights, 1 / sqrt(96); of Llama's 0.02 so narrow a model hardly learns


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
    """Do what ``folder/result.json`` lacks of a seed, and return it: ``rows`` of the table, ``gap`` and ``cosine`` of
    texts and pictures, ``cpu_minutes``, ``scenes`` and the default method's ``answers`` for what shown.npy holds.

    ``sizes``: ``pairs`` and ``steps`` of the encoder; ``texts`` and ``epochs`` of the language models; ``album``,
    pictures that belong to no text; held-out ``pictures``. A folder of other sizes ends the program.
    """
    file, start = folder / "result.json", time.process_time()
    result: dict[str, Any] = read_json(file) if file.is_file() else {"sizes": sizes, "rows": {}, "cpu_minutes": 0.0}
    rows, spent = result["rows"], result["cpu_minutes"]
    if result["sizes"] != sizes:
        sys.exit(f"error: {file} is of other sizes, {result['sizes']}; give another --output")
    if rows.keys() == set(ORDER):
        return result
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    held_out, vectors = prepare(folder, seed, sizes)
    pairs, seen, album, same = (vectors[name] for name in ("texts", "pictures", "album", "same"))
    found = distances(pairs, seen)
    result |= {"scenes": held_out[:SHOWN].tolist(), "gap": found["distance"], "cosine": found["cosine"]}
    if result["gap"] < SMALLEST_GAP:
        sys.exit(
            f"error: means of texts and pictures {result['gap']:.2f} apart, of {SMALLEST_GAP}: methods look equal"
        )
    for method in (SHUFFLED, REAL, *METHODS):
        if method in rows:
            continue
        moves: dict[str, Any] = {"transfer": method, "images": album} if method in METHODS else {}
        data = UnicornDataset(folder / "unicorn-1.2m", cache=folder / "cache", seed=seed, **moves)
        order = np.random.default_rng([seed, 2]).permutation(len(data))
        other = same if method == REAL else data.__getitems__(order)["embeds"].float()
        treated = seen if method == REAL else apply_to_images(seen, data.statistics, image_mean(album)[0])
        learned = data if method in METHODS else Replaced(data, other)
        model, tokenizer = language_model(learned, folder, seed, sizes["epochs"])
        for name, shown in {method: treated, **({NOT_CENTRED: seen} if method == "unicorn" else {})}.items():
            said = {what: answers(model, tokenizer, shown, asked[0], 2) for what, asked in QUESTIONS.items()}
            truth = zip(said.items(), held_out.T, strict=True)
            rows[name] = {what: float(np.mean(np.array(ANSWERS[what])[row] == texts)) for (what, texts), row in truth}
            if method in METHODS:
                rows[name] |= distances(data.statistics.move(pairs.clone(), range(len(pairs))), shown)
            if name == "unicorn":
                result["answers"] = {what: texts[:SHOWN] for what, texts in said.items()}
            say(f"seed {seed}, {name}: { {key: round(value, 2) for key, value in rows[name].items()} }")
        result["cpu_minutes"] = spent + (time.process_time() - start) / 60
        write_json(file, result)
    return result


def prepare(folder: Path, seed: int, sizes: dict[str, int]) -> tuple[Scenes, dict[str, torch.Tensor]]:
    """Make the encoder and the data set; return the held-out scenes, and save and return vectors, float32 [n, d]:
    ``texts`` and ``pictures`` of these scenes, an ``album`` of no texts, the ``same`` scenes as the data set's."""
    rng = np.random.default_rng([seed, 0])
    if not (folder / "encoder" / "preprocessor_config.json").is_file():  # which is saved last
        scenes = draw_scenes(sizes["pairs"], rng)
        train_encoder(folder / "encoder", render(scenes, rng), captions(scenes, rng, False), sizes["steps"], seed)
    rng = np.random.default_rng([seed, 1])
    scenes, held_out, album = (draw_scenes(sizes[name], rng) for name in ("texts", "pictures", "album"))
    run = write_run(folder / "run", captions(scenes, rng, True), conversations(scenes, rng))
    make_text_embeddings(run)
    make_image_embeddings(run)
    build(Unicorn12M, run.path, folder / "unicorn-1.2m")
    encoder = load_encoder(run.recipe.embed, run.recipe.directory)
    drawn = {name: render(of, rng) for name, of in (("pictures", held_out), ("album", album), ("same", scenes))}
    vectors = {name: encoder.encode_images(list(map(Image.fromarray, every))) for name, every in drawn.items()}
    vectors["texts"] = encoder.encode(captions(held_out, rng, True))
    for name, rows in vectors.items():
        np.save(folder / f"{name}.npy", rows.numpy())  # for `python -m generation report --images --pairs`
    np.save(folder / "shown.npy", drawn["pictures"][:SHOWN])
    return held_out, vectors


def write_run(path: Path, texts: list[str], talks: list[list[dict[str, str]]]) -> Run:
    """Return a run whose captions are the made ones, each with its own conversation."""
    count, seeds = len(texts), [{"name": "made", "path": "made.txt", "license": "Apache-2.0"}]
    recipe = {"directory": str(path.parent.resolve()), "seeds": {"captions": seeds}, "embed": {"encoder": "encoder"}}
    run = Run(path, parse_recipe({"name": "miniature", **recipe}, "miniature"), create=True)
    columns: dict[str, list[Any]] = {"id": [row_id(0, row) for row in range(count)], "seed": texts, "caption": texts}
    columns |= {"input_hash": list(map(text_hash, texts)), "words": [len(t.split()) for t in texts]}
    equal = {"source": "made", "license": "Apache-2.0", "instruction": "<image>\nDescribe the picture."}
    equal |= {"prompt": "made@1.0.0", "model": "made"}
    columns |= {"conversations": talks, **{name: [value] * count for name, value in equal.items()}}
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
    tokenizer = word_tokenizer(words, "$A")
    tokenizer.encode = lru_cache(None)(tokenizer.encode)  # the same few texts in all conversations
    set_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
    shape |= {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "eos_token_id": 1, "initializer_range": INITIAL}
    model = VisionLanguageModel(LlamaForCausalLM(LlamaConfig(**shape)), Projector(DIMENSION, IMAGE_TOKENS, 96))
    settings: dict[str, Any] = {"num_train_epochs": epochs, "per_device_train_batch_size": BATCH_ROWS, "seed": seed}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    train(model, tokenizer, data, folder / "checkpoints", LEARNING_RATE, **settings)
    return model.eval(), tokenizer


def distances(texts: torch.Tensor, pictures: torch.Tensor) -> dict[str, float]:
    """Return the distance of the means and the mean cosine of pairs, rows [n, d] of each."""
    cosine = float(cosine_similarity(texts, pictures).mean())
    return {"distance": float((texts.mean(0) - pictures.mean(0)).norm()), "cosine": cosine}
