"""A tiny CLIPModel of transformers, trained on pairs of the made world and saved as a checkpoint like any other.

Its modality gap, as wide as that of real encoders, comes of towers that begin in narrow cones (random biases of their
last layer norms), of a logit scale that is high from the start and fixed, and of all that captions do not say.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from generation.logs import Progress

from .world import SIDE

DIMENSION = 256
CONE = 0.3  # standard deviation of the biases of the last layer norms, whose outputs have standard deviation 1
LOGIT_SCALE = 50.0  # at 100, CLIP's highest, these small towers collapse in their first steps
BATCH_ROWS, LEARNING_RATE = 128, 1e-3
# Larger initial weights than CLIP's, whose image tower is made for 12 layers: here pictures differ from the start.
_SHAPE = {"num_attention_heads": 4, "num_hidden_layers": 2, "initializer_factor": 2.0, "initializer_range": 0.05}
_VISION = _SHAPE | {"hidden_size": 128, "intermediate_size": 256, "image_size": SIDE, "patch_size": 8}
_TEXT = _SHAPE | {"hidden_size": 96, "intermediate_size": 192, "max_position_embeddings": 32}


def word_tokenizer(texts: list[str], template: str) -> Any:
    """Return a tokenizer whose tokens are the words of ``texts``; ``template`` says where it adds <s> and </s>."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<s>", "</s>", "<unk>"]))
    ends = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    named: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "model_max_length": 32}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)  # type: ignore[no-untyped-call]


def train_encoder(path: Path, pictures: NDArray[np.uint8], texts: list[str], steps: int, seed: int) -> None:
    """Train a CLIPModel on pictures, uint8 [n, 32, 32, 3], and their texts, in steps of 128 pairs; save it in ``path``
    with its tokenizer and image processor."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(texts, "<s> $A </s>")
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    text = _TEXT | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=DIMENSION))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(LOGIT_SCALE)).requires_grad_(False)
        model.vision_model.embeddings.position_embedding.weight.normal_(0, 0.2)
        for norm in (model.vision_model.post_layernorm, model.text_model.final_layer_norm):
            norm.bias.normal_(0, CONE)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # [n, 3, 32, 32]
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (processor.image_mean, processor.image_std))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    with Progress("encoder", steps, unit="step") as bar:
        for _ in range(steps):
            rows = torch.randint(len(texts), (BATCH_ROWS,))
            inputs = {name: values[rows] for name, values in tokens.items()}
            loss = model(pixel_values=(pixels[rows] - mean) / std, **inputs, return_loss=True).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(1, loss=round(loss.item(), 3))
    for part in (model, tokenizer, processor):
        part.save_pretrained(path)
