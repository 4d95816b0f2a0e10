"""A trained model describes pictures: python -m examples.describe_image vlm photo.jpg --encoder E --images photos"""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from examples.train_vlm import VisionLanguageModel, load, tokens
from generation.cli import run_command
from generation.config import Embed
from generation.encoders import load_encoder
from generation.loader import apply_to_images, image_mean
from generation.transfer import Statistics

app = typer.Typer(name="python -m examples.describe_image", add_completion=False, rich_markup_mode=None)


@torch.inference_mode()
def answers(vlm: VisionLanguageModel, tokenizer: Any, vectors: torch.Tensor, question: str, limit: int) -> list[str]:
    """Return the model's answers to a question about pictures, given as vectors [n, d] that were treated."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}]
    ids, _ = tokens(tokenizer, turns, len(vlm.projector.positions))
    device, end = vlm.projector.positions.device, tokenizer.eos_token_id
    rows = torch.tensor([ids], device=device).expand(len(vectors), -1)
    inputs = {"inputs_embeds": vlm.inputs(rows, vectors.to(device)), "attention_mask": torch.ones_like(rows)}
    options = {"max_new_tokens": limit, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    made = vlm.language_model.generate(**inputs, **options)
    return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="Directory that examples.train_vlm wrote.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to describe.")],
    encoder: Annotated[str, typer.Option(help="Dual encoder of the training vectors: path or owner/name@commit.")],
    text_head: Annotated[str | None, typer.Option(help="LLM2CLIP's CLIP checkpoint.")] = None,
    images: Annotated[Path | None, typer.Option(help="Pictures like them, or vectors: their mean is needed.")] = None,
    question: Annotated[str, typer.Option(help="What to ask.")] = "Describe the image in detail.",
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
) -> None:
    """Print the model's answer to a question about each picture."""
    (vlm, tokenizer), statistics = load(model), Statistics.load(model / "transfer.safetensors")
    if "sub:IMAGE_MEAN" in statistics.facts["image_ops"] and images is None:
        raise typer.BadParameter("its transfer centres pictures by the mean of pictures like them: give --images")
    eyes = load_encoder(Embed(encoder=encoder, text_head=text_head), Path.cwd())
    for key, known in statistics.facts.get("encoder", {}).items():
        if key in ("commit", "weights_sha256", "dimension") and known != (found := eyes.identity.get(key)):
            raise typer.BadParameter(f"encoder {encoder} has {key} {found}, and the training vectors' {known}")
    mean = image_mean(images, eyes.encode_images)[0] if images else None
    vectors = apply_to_images(eyes.encode_images(pictures), statistics, mean)
    vlm.to("cuda" if torch.cuda.is_available() else "cpu")
    for picture, text in zip(pictures, answers(vlm, tokenizer, vectors, question, max_tokens), strict=True):
        print(f"{picture}: {text}")


if __name__ == "__main__":
    sys.exit(run_command(app, sys.argv[1:], "python -m examples.describe_image"))
