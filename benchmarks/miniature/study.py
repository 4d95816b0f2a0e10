"""One seed of the miniature: an encoder, a run, and a language model trained on text for each transfer method."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
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
from generation.stages import CAPTIONS, SEEDS, Stage
from generation.store import Run
from generation.transfer.stage import make_image_embeddings
from unicorn_1_2m import Unicorn12M

from .dual_encoder import DIMENSION, train_encoder, word_tokenizer
from .world import ATTRIBUTES, QUESTIONS, Scenes, captions, conversations, draw_scenes, render

METHODS = ("none", "mean_shift", "unicorn", "anchor", "realign", "c3")
NOT_CENTRED = "unicorn, pictures not centred"
REAL, SHUFFLED = "real picture vectors (upper bound)", "shuffled vectors (lower bound)"
SMALLEST_GAP = 0.5  # between the means; real encoders have 0.6 to 0.9, and less tells no methods apart
IMAGE_TOKENS, LEARNING_RATE, BATCH_ROWS = 2, 2e-3, 64  # of the language models
Vectors = torch.Tensor  # float32 [n, d]


class GapTooSmall(Exception):
    """A world in which texts and pictures lie so close that all methods must do equally well."""


class Replaced(Dataset[dict[str, Any]]):
    """The rows of a data set with other vectors [n, d]."""

    def __init__(self, dataset: UnicornDataset, vectors: Vectors) -> None:
        self.dataset, self.vectors, self.set_epoch = dataset, vectors, dataset.set_epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return a batch of rows."""
        return self.dataset.__getitems__(rows) | {"embeds": self.vectors[rows]}


def one_seed(folder: Path, seed: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Return ``rows`` of the table, and the pictures and answers of the default method.

    Args:
        folder: for the encoder, the run and the data set.
        seed: of everything.
        sizes: ``pairs`` and ``steps`` of the encoder; ``texts`` and ``epochs`` of the language models; ``album``,
            pictures that belong to no text; held-out ``pictures``.

    Raises:
        GapTooSmall: the encoder's means are less than 0.5 apart.
    """
    if not (folder / "encoder" / "config.json").is_file():
        rng = np.random.default_rng([seed, 0])
        scenes = draw_scenes(sizes["pairs"], rng)
        train_encoder(folder / "encoder", render(scenes, rng), captions(scenes, rng, False), sizes["steps"], seed)
    rng = np.random.default_rng([seed, 1])
    scenes, held_out, album = (draw_scenes(sizes[name], rng) for name in ("texts", "pictures", "album"))
    texts, pictures = captions(scenes, rng, True), render(held_out, rng)
    run = write_run(folder / "run", texts, conversations(scenes, rng))
    make_text_embeddings(run)
    make_image_embeddings(run)
    build(Unicorn12M, run.path, folder / "unicorn-1.2m")
    encoder = load_encoder(run.recipe.embed, run.recipe.directory)

    def see(images: NDArray[np.uint8]) -> Vectors:
        return encoder.encode_images([Image.fromarray(image) for image in images])

    unpaired, seen, same, said = (
        see(render(album, rng)),
        see(pictures),
        see(render(scenes, rng)),
        encoder.encode(texts),
    )
    pairs = encoder.encode(captions(held_out, rng, True))
    np.save(folder / "texts.npy", pairs.numpy())  # for `report --pairs`
    np.save(folder / "pictures.npy", seen.numpy())
    np.save(folder / "album.npy", unpaired.numpy())
    gap = float((said.mean(0) - unpaired.mean(0)).norm())
    say(f"seed {seed}: means {gap:.2f} apart, paired cosine {float((pairs * seen).sum(1).mean()):.2f}")
    if gap < SMALLEST_GAP:
        raise GapTooSmall(
            f"seed {seed}: the means of texts and pictures are {gap:.2f} apart, less than {SMALLEST_GAP}"
        )
    mean, rows, sheet = image_mean(unpaired)[0], dict[str, dict[str, float]](), list[dict[str, str]]()
    stored = UnicornDataset(folder / "unicorn-1.2m", cache=folder / "cache")
    assert [int(id) for id in stored.__getitems__(range(len(stored)))["id"]] == list(range(len(texts)))
    for method in (*METHODS, REAL, SHUFFLED):
        moves = {"transfer": method, "images": unpaired} if method in METHODS else {}
        data = UnicornDataset(folder / "unicorn-1.2m", cache=folder / "cache", seed=seed, **moves)
        treated = apply_to_images(seen, data.statistics, mean)
        if method == REAL:
            model, tokenizer = language_model(Replaced(data, same), folder, seed, sizes["epochs"])
            treated = seen
        elif method == SHUFFLED:
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
            shuffled = Replaced(data, data.__getitems__(order.numpy())["embeds"].float())
            model, tokenizer = language_model(shuffled, folder, seed, sizes["epochs"])
        else:
            model, tokenizer = language_model(data, folder, seed, sizes["epochs"])
        said_of = {name: answers(model, tokenizer, treated, asked[0], 2) for name, asked in QUESTIONS.items()}
        rows[method] = scores(said_of, held_out)
        if method in METHODS:
            rows[method] |= distances(data, pairs, treated)
        if method == "unicorn":
            sheet = [dict(zip(said_of, row, strict=True)) for row in zip(*said_of.values(), strict=True)]
            raw = {name: answers(model, tokenizer, seen, asked[0], 2) for name, asked in QUESTIONS.items()}
            rows[NOT_CENTRED] = scores(raw, held_out) | distances(data, pairs, seen)
        say(f"seed {seed}, {method}: {rows[method]}")
    return {"rows": rows, "gap": gap, "pictures": pictures, "scenes": held_out, "answers": sheet}


def write_run(path: Path, texts: list[str], talks: list[list[dict[str, str]]]) -> Run:
    """Return a run whose captions are the made ones, each with its own conversation."""
    ids, rows = [row_id(0, row) for row in range(len(texts))], len(texts)
    seeds = {"captions": [{"name": "made", "path": "made.txt", "license": "Apache-2.0"}]}
    recipe = {"name": "miniature", "directory": str(path.parent), "seeds": seeds, "embed": {"encoder": "encoder"}}
    run = Run(path, parse_recipe(recipe, "miniature"), create=True)
    columns: dict[str, Any] = {"id": ids, "seed": texts, "source": ["made"] * rows, "license": ["Apache-2.0"] * rows}
    made = {"caption": texts, "conversations": talks, "words": [len(text.split()) for text in texts]}
    made |= {
        "instruction": ["<image>\nDescribe the picture."] * rows,
        "input_hash": [text_hash(text) for text in texts],
    }
    made |= {"prompt": ["made@1.0.0"] * rows, "model": ["made"] * rows}
    run.begin(SEEDS)
    _commit(run, SEEDS, columns)
    run.begin(CAPTIONS, {"model": "made"})
    _commit(run, CAPTIONS, columns | made)
    return run


def _commit(run: Run, stage: Stage, columns: dict[str, Any]) -> None:
    assert stage.schema is not None
    rows = len(columns["id"])
    table = pa.table(
        {field.name: columns.get(field.name, pa.nulls(rows, field.type)) for field in stage.schema}, stage.schema
    )
    if run.is_due(stage, 0):
        run.commit(stage, 0, rows, parquet(table))


def language_model(data: Any, folder: Path, seed: int, epochs: int) -> tuple[VisionLanguageModel, Any]:
    """Return a small language model from scratch that learned all conversations of ``data``, and its tokenizer."""
    words = [*(text for asked in QUESTIONS.values() for text in asked), "USER: ASSISTANT:"]
    words += [value[0] for values in ATTRIBUTES.values() for value in values]
    inner = word_tokenizer(words, ["<s>", "</s>"], "$A")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.encode = lru_cache(None)(tokenizer.encode)  # the same few texts in all conversations
    set_seed(seed)
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, tie_word_embeddings=True)
    model = VisionLanguageModel(LlamaForCausalLM(config), Projector(DIMENSION, IMAGE_TOKENS, 96))
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": BATCH_ROWS, "seed": seed}
    settings |= {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    train(model, tokenizer, data, folder / "checkpoints", LEARNING_RATE, **settings)
    return model.eval(), tokenizer


def scores(said: dict[str, list[str]], scenes: Scenes) -> dict[str, float]:
    """Return the share of right answers for each attribute."""
    return {
        name: float(np.mean([text == values[value][0] for text, value in zip(said[name], column, strict=True)]))
        for (name, values), column in zip(ATTRIBUTES.items(), scenes.T, strict=True)
    }


def distances(data: UnicornDataset, texts: Vectors, pictures: Vectors) -> dict[str, float]:
    """Return the distance of the means and the mean cosine of held-out pairs: moved texts and treated pictures."""
    statistics = data.statistics
    ids = range(len(texts)) if statistics.facts["noise"] else ()
    moved = statistics.move(texts.clone(), ids)
    cosine = torch.nn.functional.cosine_similarity(moved, pictures)
    return {"distance": float((moved.mean(0) - pictures.mean(0)).norm()), "cosine": float(cosine.mean())}
