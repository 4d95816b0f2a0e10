"""Train a vision-language model on built data sets; no image is read.

    python -m examples.train_vlm unicorn-1.2m --instructions unicorn-471k-instruction --model MODEL --output vlm

First the projector alone learns from captions, then all weights, or with ``--lora`` low-rank updates of them, learn
from conversations, as in the paper (arXiv 2503.22655). The same command resumes.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils.import_utils import is_peft_available

from generation.cli import run_command
from generation.errors import DatasetError
from generation.loader import Collate, UnicornDataset

IMAGE, IGNORED, MAX_LENGTH = -200, -100, 2048  # LLaVA's ids of image tokens and unlearned labels; the paper's limit
PROJECTOR_RATE, FULL_RATE, LORA_RATE = 5e-4, 1e-5, 2e-4  # learning rates: the paper's two, and LLaVA's for LoRA
app = typer.Typer(name="python -m examples.train_vlm", add_completion=False, rich_markup_mode=None)


class Projector(nn.Module):
    """The paper's two layers with GELU, for one vector at k learned positions. The paper repeats the vector: 576 equal
    tokens. With a learned vector added at each position tokens differ, and 8 of them say more and cost less."""

    def __init__(self, dimension: int, tokens: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(tokens, dimension))
        self.layers = nn.Sequential(nn.Linear(dimension, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return [n, k, width] of vectors [n, d], scaled first: the entries of a unit row then have size 1."""
        return self.layers(vectors.unsqueeze(1) * vectors.shape[1] ** 0.5 + self.positions)  # type: ignore[no-any-return]


class VisionLanguageModel(nn.Module):
    """A causal language model that reads projected vectors where token ids are ``IMAGE``."""

    def __init__(self, language_model: Any, projector: Projector) -> None:
        super().__init__()
        self.language_model, self.projector = language_model, projector

    def inputs(self, input_ids: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """Return input embeddings [n, length, width] of ids [n, length] and vectors [n, d]."""
        words: torch.Tensor = self.language_model.get_input_embeddings()(input_ids.clamp(min=0))
        return words.masked_scatter((input_ids == IMAGE).unsqueeze(-1), self.projector(embeds.float()).to(words.dtype))

    def forward(self, input_ids: torch.Tensor, embeds: torch.Tensor, **others: Any) -> Any:
        """Return the language model's output; ``others``: ``labels``."""
        return self.language_model(inputs_embeds=self.inputs(input_ids, embeds), use_cache=False, **others)

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights that are trained: what Trainer writes into checkpoints."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {name: weight for name, weight in super().state_dict(*args, **options).items() if name in trained}

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        """Load the weights of a checkpoint; those that are not trained stay."""
        return super().load_state_dict(super().state_dict() | state_dict)


def load_language_model(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a causal language model of transformers and its tokenizer, from a directory or the Hub."""
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
        if tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has no token for the end of a text")
    except (OSError, ValueError, LookupError) as error:
        raise typer.BadParameter(f"cannot use {name} as a causal language model: {error}") from error
    return model, tokenizer


def tokens(tokenizer: Any, turns: list[dict[str, str]], image_tokens: int) -> tuple[list[int], list[int]]:
    """Return ids and labels of a conversation in LLaVA's plain template, which suits every language model:
    ``USER: <image> question ASSISTANT: answer</s>``. Only answers are learned."""
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    labels = [IGNORED] * len(ids)
    for turn in turns:
        is_answer = turn["from"] == "gpt"
        text = f" {turn['value']}" if is_answer else f"USER: {turn['value']} ASSISTANT:"
        parts = [tokenizer.encode(part, add_special_tokens=False) for part in text.split("<image>")]
        new = sum(([IMAGE] * image_tokens + part for part in parts[1:]), parts[0])
        new = new + [tokenizer.eos_token_id] * is_answer
        ids += new
        labels += new if is_answer else [IGNORED] * len(new)
    if ids.count(IMAGE) != image_tokens:
        raise DatasetError(f"a conversation must hold <image> once: {turns}")
    return ids[:MAX_LENGTH], labels[:MAX_LENGTH]


def tokenized(tokenizer: Any, image_tokens: int, conversations: list[Any]) -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``labels`` [n, length], padded on the right, where a causal model does not look."""
    rows = zip(*(tokens(tokenizer, turns, image_tokens) for turns in conversations), strict=True)
    ids, labels = ([torch.tensor(row) for row in part] for part in rows)
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return {"input_ids": pad(ids), "labels": pad(labels, padding_value=IGNORED)}


class _Epochs(TrainerCallback):  # by which the loader draws noise; accelerate sets them in a single process only
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        others["train_dataloader"].dataset.set_epoch(int(state.epoch or 0))


def train(vlm: VisionLanguageModel, tokenizer: Any, data: Any, output: Path, rate: float, **settings: Any) -> None:
    """Train the weights that require gradients, from the last checkpoint in ``output`` on, by TrainingArguments."""
    for file in output.glob("checkpoint-*/trainer_state.json"):
        if (state := json.loads(file.read_text()))["global_step"] >= state["max_steps"]:  # Trainer would add a step
            vlm.load_state_dict(load_file(file.with_name("model.safetensors")))
            return
    settings |= {"learning_rate": rate, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "save_total_limit": 1}
    settings |= {"bf16": torch.cuda.is_available(), "report_to": "none", "remove_unused_columns": False}
    collate: Any = Collate(partial(tokenized, tokenizer, len(vlm.projector.positions)), torch.float32)
    trainer = Trainer(vlm, TrainingArguments(str(output), **settings), collate, data, callbacks=[_Epochs()])
    trainer.train(resume_from_checkpoint=any(output.glob("checkpoint-*")))


def load(directory: Path) -> tuple[VisionLanguageModel, Any]:
    """Return the trained model in a directory, and its tokenizer."""
    if not (path := directory / "projector.safetensors").is_file():
        raise typer.BadParameter(f"{directory} holds no trained model (no projector.safetensors); train one first")
    weights, (model, tokenizer) = load_file(path), load_language_model(str(directory))
    projector = Projector(weights["positions"].shape[1], len(weights["positions"]), model.config.hidden_size)
    projector.load_state_dict(weights)
    return VisionLanguageModel(model, projector).eval(), tokenizer


@app.command()
def main(
    captions: Annotated[Path, typer.Argument(help="The built Unicorn-1.2M.")],
    model: Annotated[str, typer.Option(help="Causal language model: a directory or a Hub id.")],
    output: Annotated[Path, typer.Option(help="Directory of the trained model.")],
    instructions: Annotated[Path | None, typer.Option(help="The built Unicorn-471K-Instruction: phase 2.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Phase 2 by low-rank updates; needs peft.")] = False,
    image_tokens: Annotated[int, typer.Option(min=1, help="Positions of the projector.")] = 8,
    transfer: Annotated[str | None, typer.Option(help="Another transfer method than the data set's.")] = None,
    images: Annotated[Path | None, typer.Option(help="Unpaired image vectors, for anchor and realign.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows on one device.")] = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of one step.")] = 4,
    epochs: Annotated[float, typer.Option(help="Of each phase.")] = 1,
    max_steps: Annotated[int, typer.Option(help="Steps of each phase, in place of epochs.")] = -1,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Of new weights, order and noise.")] = 0,
) -> None:
    """Train a projector on captions, then projector and language model on conversations."""
    asked, file = {name: str(value) for name, value in locals().items()}, output / "training.json"
    if file.is_file() and (known := json.loads(file.read_text())) != asked:
        raise typer.BadParameter(f"{output} was begun with {dict(known.items() - asked.items())}; restore that")
    if lora and not is_peft_available():
        raise typer.BadParameter("--lora needs the package peft: pip install peft")
    options: dict[str, Any] = {"transfer": transfer, "images": images, "seed": seed}
    sets = [UnicornDataset(path, captions, **options) for path in (captions, instructions) if path]
    frozen = torch.cuda.is_available() and (instructions is None or lora)  # only trained weights need float32
    language_model, tokenizer = load_language_model(model, torch.bfloat16 if frozen else torch.float32)
    set_seed(seed)
    projector = Projector(sets[0].dimension, image_tokens, language_model.config.hidden_size)
    vlm = VisionLanguageModel(language_model.requires_grad_(False), projector)
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked, indent=1))
    steps = {"num_train_epochs": epochs, "max_steps": max_steps, "save_steps": save_steps, "logging_steps": 10}
    steps |= {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulate, "seed": seed}
    train(vlm, tokenizer, sets[0], output / "phase-1", PROJECTOR_RATE, **steps)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        vlm.language_model = get_peft_model(language_model, config)
    else:
        language_model.requires_grad_(True)
    for data in sets[1:]:
        train(vlm, tokenizer, data, output / "phase-2", LORA_RATE if lora else FULL_RATE, **steps)
    (vlm.language_model.merge_and_unload() if lora else language_model).save_pretrained(output)
    tokenizer.save_pretrained(output)
    sets[0].statistics.save(output / "transfer.safetensors")
    save_file(projector.state_dict(), output / "projector.safetensors")  # last: the model is complete
    print(f"Trained. Ask it: python -m examples.describe_image {output} PICTURE --encoder ENCODER --images PICTURES")


if __name__ == "__main__":
    sys.exit(run_command(app, sys.argv[1:], "python -m examples.train_vlm"))
