"""What all encoders share, and the encoder that is one model of transformers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ..errors import EmbeddingError
from ..limits import BATCH_IMAGES, TOKENISE_TEXTS
from .checkpoint import Checkpoint

Tokens = npt.NDArray[np.int32]  # ids of one text, [tokens]

BATCH_TOKENS = {"cpu": 8192, "cuda": 32_768}  # padded tokens in a batch; halved as often as the memory needs


class Encoder(ABC):
    """Texts, and pictures if the model has an image tower, to unit vectors."""

    kind: str  # sentence, dual or llm2clip
    pooling: str  # how the states of a text's tokens become one vector
    max_tokens: int  # of the longest input, special tokens included; longer texts are cut
    dimension: int  # d of the vectors
    template = "{}"  # what a text is put into
    head: Checkpoint | None = None  # LLM2CLIP: its CLIP checkpoint

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self._tokenizer = checkpoint.load("tokenizer", AutoTokenizer.from_pretrained)
        if len(self._tokenizer) <= len(self._tokenizer.all_special_tokens):  # transformers 5 reports no missing files
            raise EmbeddingError(f"encoder {checkpoint.path}: no vocabulary; is tokenizer.json missing?")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the vectors, as JSON values: model, commit or hash of the weights, pooling, dtype, ..."""
        facts = {name: getattr(self, name) for name in ("kind", "pooling", "max_tokens", "dimension")}
        facts |= {"dtype": str(self.dtype).removeprefix("torch."), "joint_with_images": self.kind != "sentence"}
        return self.checkpoint.identity() | facts | ({"text_head": self.head.identity()} if self.head else {})

    @cached_property
    def model(self) -> Any:
        """The text tower; its weights are loaded at the first use."""
        return self.checkpoint.model(AutoModel, self.device, self.dtype)

    @abstractmethod
    def _features(self, rows: list[Tokens]) -> Any:
        """Return the vectors of one batch, [rows, d], of any norm, or as ``pooler_output`` of what is returned."""

    @cached_property
    @abstractmethod
    def _image_tower(self) -> tuple[Any, Callable[..., Any]]:
        """The image processor, and what makes of its output, given as keywords, the same as ``_features``."""

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the vectors of texts, float32 [n, d], of norm 1; an EmbeddingError says what cannot be loaded."""
        return self.encode_tokens(self.tokenise(texts)[0])

    def tokenise(self, texts: Sequence[str]) -> tuple[list[Tokens], int]:
        """Return the token ids of each text, and how many texts were cut to ``max_tokens``, as the tokenizer would do
        without counting: closing special tokens stay."""
        mask = self._tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
        closing, rows, truncated = mask[::-1].index(0), list[Tokens](), 0
        for first in range(0, len(texts), TOKENISE_TEXTS):
            filled = [self.template.format(text.strip()) for text in texts[first : first + TOKENISE_TEXTS]]
            for ids in self._tokenizer(filled, verbose=False)["input_ids"]:
                if len(ids) > self.max_tokens:
                    ids = ids[: self.max_tokens - closing] + ids[len(ids) - closing :]
                    truncated += 1
                rows.append(np.asarray(ids, dtype=np.int32))
        return rows, truncated

    def encode_tokens(self, rows: Sequence[Tokens], on_batch: Callable[[int], object] = bool) -> torch.Tensor:
        """Return the vectors of what ``tokenise`` returned, as ``encode``; report the size of each batch."""
        vectors = torch.empty(len(rows), self.dimension)
        for batch in token_batches([len(row) for row in rows], BATCH_TOKENS[self.device.type]):
            vectors[batch] = self._unit_rows([rows[index] for index in batch])
            on_batch(len(batch))
        return vectors

    def encode_images(self, images: Sequence[Path | Image.Image]) -> torch.Tensor:
        """Return the vectors of picture files or PIL images, as ``encode``; an EmbeddingError names a picture that
        cannot be decoded, or says that the model has no image tower."""
        (processor, tower), vectors = self._image_tower, torch.empty(len(images), self.dimension)
        for first in range(0, len(images), BATCH_IMAGES):
            pictures = list[Image.Image]()
            for image in images[first : first + BATCH_IMAGES]:
                try:
                    with Image.open(image) if isinstance(image, Path) else image as opened:
                        pictures.append(opened.convert("RGB"))
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    raise EmbeddingError(f"cannot read picture {image}: {error}; replace or remove it") from error
            inputs = processor(images=pictures, return_tensors="pt").to(self.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
            with torch.inference_mode():
                vectors[first : first + BATCH_IMAGES] = unit_rows(tower(**inputs))
        return vectors

    @torch.inference_mode()
    def _unit_rows(self, rows: list[Tokens]) -> torch.Tensor:
        """Return float32 [rows, d] on the CPU, by halves where the device has too little memory for all."""
        try:
            return unit_rows(self._features(rows))
        except torch.OutOfMemoryError as error:
            if len(rows) == 1:
                fault = f"too little memory to encode one text of {len(rows[0])} tokens with {self.checkpoint.name}"
                remedy = "end other processes that use it, or set embed.dtype: bfloat16"
                raise EmbeddingError(f"{self.device} has {fault}; {remedy}") from error
        middle = len(rows) // 2  # after the handler, which would keep the failed batch's tensors alive
        return torch.cat([self._unit_rows(rows[:middle]), self._unit_rows(rows[middle:])])


def unit_rows(features: Any) -> torch.Tensor:
    """Return a model's features, or the ``pooler_output`` that holds them, float32 [n, d] of norm 1 on the CPU."""
    return normalize(getattr(features, "pooler_output", features).float(), dim=-1).cpu()


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield row numbers, longest first, as many to a batch as fit into ``budget`` tokens after padding, at least one.
    Padding takes fewer than ``budget * (1 + ln(longest / shortest))`` tokens over all batches."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        size = max(1, budget // max(1, lengths[rows[0]]))
        yield rows[:size]
        rows = rows[size:]


class ModelEncoder(Encoder):
    """One model of transformers. A dual encoder (CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ...) makes features of texts and
    images itself; of a sentence encoder the last hidden states of a text's tokens are averaged.

    Texts are padded to the longest of the batch, SigLIP's as in training to the full length without a mask
    (https://huggingface.co/docs/transformers/model_doc/siglip). Text generators and other poolings are refused.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        path, config = checkpoint.path, checkpoint.load("configuration", AutoConfig.from_pretrained)
        model = MODEL_MAPPING.get(type(config), None)  # None: the class comes with the model, a dual encoder
        dual, limit = model is None or hasattr(model, "get_image_features"), self._tokenizer.model_max_length
        self.kind, self.pooling = ("dual", "model") if dual else ("sentence", "mean")
        limit = int(min(limit, getattr(getattr(config, "text_config", config), "max_position_embeddings", limit)))
        if dual:
            self.max_tokens, siglip = limit, config.model_type.startswith("siglip")
            self._padding: dict[str, Any] = {"padding": "max_length", "max_length": limit} if siglip else {}
            self.dimension = self._unit_rows(self.tokenise(["a"])[0]).shape[1]  # configurations name it differently
            return
        if config.model_type == "llama":
            raise EmbeddingError(f"encoder {path} is a Llama: LLM2CLIP needs its CLIP checkpoint as embed.text_head")
        if config.is_encoder_decoder or any("ForCausalLM" in name for name in config.architectures or ()):
            raise EmbeddingError(f"encoder {path} generates text ({config.model_type}): give a text encoder")
        pooling = checkpoint.json("1_Pooling/config.json")  # this file and the next: of sentence-transformers
        if not pooling.get("pooling_mode_mean_tokens", pooling.get("pooling_mode", "mean") == "mean"):
            raise EmbeddingError(f"encoder {path} was not trained for mean pooling (1_Pooling/config.json)")
        self.max_tokens = int(checkpoint.json("sentence_bert_config.json").get("max_seq_length") or limit)
        self._padding, self.dimension = {}, int(config.hidden_size)

    def _features(self, rows: list[Tokens]) -> Any:
        ids = {"input_ids": [row.tolist() for row in rows]}
        inputs = self._tokenizer.pad(ids, return_tensors="pt", **self._padding).to(self.device)
        if self.kind == "dual":
            return self.model.get_text_features(**inputs)
        hidden = self.model(**inputs).last_hidden_state  # [rows, tokens, d]
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1, dtype=torch.float32)  # it has the direction of the mean

    @cached_property
    def _image_tower(self) -> tuple[Any, Callable[..., Any]]:
        if self.kind != "dual":
            fault = f"encoder {self.checkpoint.name} has no image tower: it embeds text only"
            raise EmbeddingError(f"{fault}. Name a dual encoder (CLIP, SigLIP, ...) or LLM2CLIP as embed.encoder")
        processor = self.checkpoint.load("image processor", AutoImageProcessor.from_pretrained, backend="pil")
        return processor, self.model.get_image_features
