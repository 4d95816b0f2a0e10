"""The examples end to end on small parts: train on text only, resume, ask about pictures; wrong input is named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples import describe_image, train_vlm
from generation.builders.build import build
from generation.cli import run_command
from generation.loader import UnicornDataset
from tests.runs import make_run
from tests.tiny_models import byte_bpe, smollm2, tiny_clip, tiny_siglip
from unicorn_1_2m import Unicorn12M
from unicorn_471k_instruction import Unicorn471KInstruction

STEPS = ("--max-steps", "4", "--save-steps", "2", "--batch-size", "3", "--accumulate", "2", "--image-tokens", "3")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, builder in (("captions", Unicorn12M), ("talks", Unicorn471KInstruction)):
            build(builder, make_run(folder / "run", dim=12).path, folder / name)
        tiny_clip(folder / "clip")
        tiny_siglip(folder / "siglip")
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
        config = LlamaConfig(**shape, vocab_size=500, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True)
        inner = byte_bpe(["<s>", "</s>"], "<s> $A")
        for name, specials in (("model", {"bos_token": "<s>", "eos_token": "</s>"}), ("no-end", {})):
            LlamaForCausalLM(config).save_pretrained(folder / name)
            PreTrainedTokenizerFast(tokenizer_object=inner, **specials).save_pretrained(folder / name)
        (folder / "photos").mkdir()
        for number in range(3):
            Image.effect_noise((20, 16), 60 + 40 * number).convert("RGB").save(folder / f"photos/{number}.png")
        yield folder


def train(parts: Path, output: Path, *options: object) -> int:
    arguments = [parts / "captions", "--model", parts / "model", "--output", output, *STEPS, *options]
    return run_command(train_vlm.app, [str(argument) for argument in arguments], "")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / "projector.safetensors")


@pytest.fixture(scope="module")
def trained(parts: Path) -> Path:
    assert train(parts, parts / "vlm", "--instructions", parts / "talks") == 0
    return parts / "vlm"


def test_a_model_trained_on_text_answers_about_pictures(
    parts: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [str(parts / "photos" / name) for name in ("1.png", "0.png")]
    options = ["--encoder", str(parts / "clip"), "--images", str(parts / "photos"), "--max-tokens", "5"]
    assert run_command(describe_image.app, [str(trained), *photos, *options], "") == 0
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == photos
    assert [run_command(example.app, ["--help"], "") for example in (train_vlm, describe_image)] == [0, 0]


def test_phase_1_trains_the_projector_alone_and_phase_2_everything(parts: Path, trained: Path, tmp_path: Path) -> None:
    before = load_file(parts / "model" / "model.safetensors")
    assert train(parts, tmp_path / "first") == 0
    checkpoint = load_file(tmp_path / "first/phase-1/checkpoint-4/model.safetensors")
    assert all(name.startswith("projector.") for name in checkpoint)
    first, both = weights(tmp_path / "first"), weights(trained)
    assert all(torch.equal(first[name], before[name]) for name in before)
    assert not any(torch.equal(both[name], first[name]) for name in first if "norm" not in name)


def changed(before: Path, after: Path) -> set[str]:
    """Return the weights of the language model that differ; both have the same names."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name].float(), new[name])}


def test_lora_changes_the_language_model_and_leaves_a_plain_one(parts: Path, tmp_path: Path) -> None:
    assert train(parts, tmp_path / "vlm", "--instructions", parts / "talks", "--lora") == 0
    assert len(names := changed(parts / "model", tmp_path / "vlm")) == 14 and all("proj.weight" in n for n in names)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the batch at which training is interrupted, and how many batches there were."""
    forward, numbers = train_vlm.VisionLanguageModel.forward, [0, 0]

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        numbers[1] += 1
        if numbers[0] == numbers[1]:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(train_vlm.VisionLanguageModel, "forward", interrupted)
    return numbers


@pytest.mark.parametrize("number", [5, 13])  # in phase 1, in phase 2
def test_an_interrupted_training_resumes_to_the_same_weights(
    number: int, parts: Path, trained: Path, tmp_path: Path, calls: list[int]
) -> None:
    calls[0] = number
    assert train(parts, tmp_path / "vlm", "--instructions", parts / "talks") == 130
    assert not (tmp_path / "vlm" / "projector.safetensors").exists()
    assert train(parts, tmp_path / "vlm", "--instructions", parts / "talks") == 0
    assert calls[1] == 16 + 1  # two phases of 4 steps of 2 batches, and the interrupted batch
    resumed, straight = weights(tmp_path / "vlm"), weights(trained)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


@pytest.mark.slow  # a real language model: the embedded one
@pytest.mark.timeout(1800)
def test_smollm2_learns_some_steps_resumes_and_answers(
    parts: Path, tmp_path: Path, calls: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    model, vlm, calls[0] = smollm2(tmp_path / "smollm2"), tmp_path / "vlm", 4  # the last batch
    steps = ("--max-steps", "2", "--save-steps", "1", "--batch-size", "1", "--accumulate", "1")
    options = ("--instructions", parts / "talks", "--model", model, "--lora", *steps)
    assert [train(parts, vlm, *options) for _ in range(2)] == [130, 0] and calls[1] == 5
    assert len(changed(model, vlm)) == 30 * 7  # all matrices of the layers
    arguments = [str(vlm), str(parts / "photos/0.png"), "--encoder", str(parts / "clip"), "--max-tokens", "8"]
    arguments += ["--images", str(parts / "photos"), "--question", "What stands there?"]
    capsys.readouterr()
    assert run_command(describe_image.app, arguments, "") == 0
    picture, _, answer = capsys.readouterr().out.partition(": ")
    assert picture == str(parts / "photos/0.png") and answer.strip()


def test_only_answers_are_learned_and_noise_is_drawn_anew_each_epoch(parts: Path, tmp_path: Path) -> None:
    model, tokenizer = train_vlm.load_language_model(str(parts / "model"))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A kettle."}]
    ids, labels = train_vlm.tokens(tokenizer, turns, 3)
    assert ids.count(train_vlm.IMAGE) == 3
    assert [id for id in labels if id >= 0] == [*tokenizer.encode(" A kettle.", add_special_tokens=False), 1]
    dataset = UnicornDataset(parts / "captions", transfer="c3")
    vlm = train_vlm.VisionLanguageModel(model, train_vlm.Projector(12, 3, 16))
    train_vlm.train(vlm, tokenizer, dataset, tmp_path / "out", 1e-3, num_train_epochs=3, save_strategy="no")
    assert dataset.epoch == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train RUN --model MODEL --output NEW", "is a run; build a data set"),
        ("train CAPTIONS --model CLIP --output NEW", "as a causal language model"),
        ("train CAPTIONS --model NOWHERE --output NEW", "nowhere as a causal language model"),
        ("train CAPTIONS --model NO-END --output NEW", "no token for the end of a text"),
        ("train CAPTIONS --model MODEL --output VLM", "'batch_size': '3'"),
        ("train CAPTIONS --model MODEL --output NEW --transfer realign", "needs unpaired image embeddings"),
        ("train CAPTIONS --model MODEL --output NEW --transfer nothing", "nothing"),
        ("describe MODEL PHOTO --encoder CLIP", "holds no trained model"),
        ("describe VLM PHOTO --encoder CLIP", "give --images"),
        ("describe VLM PHOTO --encoder SIGLIP --images PHOTOS", "dimension 16"),
        ("describe VLM TALKS --encoder CLIP --images PHOTOS", "cannot read picture"),
    ],
)
def test_wrong_input_is_named(
    command: str, said: str, parts: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"NEW": tmp_path / "new", "PHOTO": parts / "photos/0.png"}
    which, *words = [
        str(paths.get(word, parts / word.lower())) if word.isupper() else word for word in command.split()
    ]
    assert run_command({"train": train_vlm, "describe": describe_image}[which].app, words, "") in (1, 2)
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()
