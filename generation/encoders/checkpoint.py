"""Where a model's files are, what they are, and how they are loaded: safetensors only, and whole."""

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging

from ..config import Embed
from ..errors import EmbeddingError
from ..files import file_sha256

_FILES = (
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
)  # of a Hub repository: no pickles
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where and how a model runs.

    Attributes:
        device: of the model.
        dtype: of its weights.
        batch_tokens: padded tokens in one batch.
    """

    device: torch.device
    dtype: torch.dtype
    batch_tokens: int

    @classmethod
    def of(cls, settings: Embed, device: str | None = None) -> Self:
        """A recipe's; ``dtype: auto`` is bfloat16 on a GPU and float32 on the CPU."""
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        auto = torch.float32 if place.type == "cpu" else torch.bfloat16
        return cls(place, _DTYPES.get(settings.dtype, auto), settings.batch_tokens)


@dataclass(frozen=True)
class Checkpoint:
    """The directory of a model.

    Attributes:
        path: with ``config.json``, weights in one or several safetensors files, and a tokenizer.
        name: what it is called in the manifest and in messages.
        revision: of the Hub repository, or as the recipe states it; None for a directory without one.
        trust_remote_code: run Python code that comes with the model.
    """

    path: Path
    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds.

        Raises:
            EmbeddingError: it is missing or no JSON mapping.
        """
        try:
            content = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EmbeddingError(f"encoder {self.path}: config.json cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise EmbeddingError(f"encoder {self.path}: config.json holds {type(content).__name__}, not a mapping")
        return content

    def weights(self) -> list[Path]:
        """Its safetensors files, sorted.

        Raises:
            EmbeddingError: there is none, or one that the index names is missing.
        """
        index, single = self.path / "model.safetensors.index.json", self.path / "model.safetensors"
        if single.is_file():
            return [single]
        if not index.is_file():
            raise EmbeddingError(
                f"encoder {self.path} holds no model.safetensors; give 'embedded', a model's directory or a Hub id "
                "(pickled weights are not loaded: convert them with save_pretrained)"
            )
        try:
            files = sorted({self.path / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise EmbeddingError(f"{index} cannot be read as an index of weights: {error!r}") from error
        if missing := [file.name for file in files if not file.is_file()]:
            raise EmbeddingError(f"encoder {self.path} lacks {', '.join(missing)}, which its index names")
        return files

    def weights_sha256(self) -> str:
        """The sha256 of the weights file; of several, that of the lines ``<sha256>  <name>`` of sha256sum."""
        files = self.weights()
        if len(files) == 1:
            return file_sha256(files[0])
        lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()

    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            EmbeddingError: it has none that can be loaded.
        """
        tokenizer = self._guarded("its tokenizer", lambda: AutoTokenizer.from_pretrained(self.path, **self._local()))
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers 5 makes of missing files
            raise EmbeddingError(f"encoder {self.path}: its tokenizer has no vocabulary; is tokenizer.json there?")
        return tokenizer

    def auto_config(self) -> Any:
        """Its configuration as transformers reads it.

        Raises:
            EmbeddingError: transformers does not know the model, or it needs remote code that is not allowed.
        """
        self._check_remote_code()
        return self._guarded("its configuration", lambda: AutoConfig.from_pretrained(self.path, **self._local()))

    def is_dual(self) -> bool:
        """Whether the model embeds texts and images into one space (it has ``get_text_features`` and its like)."""
        config = self.auto_config()
        if type(config) not in MODEL_MAPPING:  # remote code: nothing but a dual encoder is of use there
            return True
        kind = MODEL_MAPPING[type(config)]
        return hasattr(kind, "get_text_features") and hasattr(kind, "get_image_features")

    def model(self, kind: Any, runtime: Runtime, may_lack: Collection[str] = (), **options: Any) -> Any:
        """Loads the model, ready to be used.

        Args:
            kind: a transformers class with ``from_pretrained``.
            runtime: where and how.
            may_lack: first parts of the names of weights that are not used, so that they need not be there.
            options: more for ``from_pretrained``, such as a ``config``.

        Raises:
            EmbeddingError: it cannot be loaded, or weights are missing or of other shapes; these are named.
        """
        self._check_remote_code()
        self.weights()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        options |= self._local()
        try:
            model, report = self._guarded(
                "the model",
                lambda: kind.from_pretrained(
                    self.path, dtype=runtime.dtype, use_safetensors=True, output_loading_info=True, **options
                ),
            )
        finally:
            logging.set_verbosity(verbosity)
        if missing := sorted(name for name in report["missing_keys"] if name.split(".")[0] not in may_lack):
            raise EmbeddingError(
                f"encoder {self.path} lacks weights: {', '.join(missing[:5])} ({len(missing)} in all)"
            )
        return model.to(runtime.device).eval().requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        """Its share of an encoder's provenance."""
        return {"model": self.name, "revision": self.revision, "weights_sha256": self.weights_sha256()}

    def _local(self) -> dict[str, Any]:
        return {"local_files_only": True, "trust_remote_code": self.trust_remote_code}

    def _check_remote_code(self) -> None:
        """Refuses code of another repository: its revision is not the pinned one."""
        foreign = [code for code in _code(self.config()) if "--" in code]
        if self.trust_remote_code and foreign:
            raise EmbeddingError(
                f"encoder {self.path} takes its code from another repository ({foreign[0]}), which no revision pins; "
                "put that code beside the weights, read it, and name it in auto_map without the repository"
            )

    def _guarded(self, what: str, load: Callable[[], Any]) -> Any:
        try:
            return load()
        except (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, SafetensorError) as error:
            hint = ""
            if _code(self.config()) and not self.trust_remote_code:
                hint = "; it comes with Python code of its own: read it, then set embed.trust_remote_code and revision"
            raise EmbeddingError(f"encoder {self.path}: {what} cannot be loaded: {error}{hint}") from error


def locate(name: str, revision: str | None, directory: Path, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint that a recipe names.

    Args:
        name: a directory, relative to ``directory``; or, where there is none, the id of a Hub repository.
        revision: of the repository; it must be given for one.
        directory: the recipe's.
        trust_remote_code: fetch, and later run, the Python code of the repository, too.

    Raises:
        EmbeddingError: there is neither, or the repository cannot be fetched.
    """
    path = directory / name
    if path.is_dir():
        return Checkpoint(path, path.resolve().name, revision, trust_remote_code)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise EmbeddingError(f"encoder {path} is no directory; give 'embedded', a model's directory or a Hub id")
    if revision is None:
        raise EmbeddingError(
            f"encoder {name} is no directory under {directory}; for the Hub repository of that name give its commit, "
            "too (embed.revision, or embed.text_head_revision for the text head)"
        )
    from huggingface_hub import snapshot_download

    patterns = [*_FILES, "*.py"] if trust_remote_code else list(_FILES)
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the Hub's client, the network and the file system have no common class of errors
        raise EmbeddingError(f"encoder {name} at {revision} cannot be fetched from the Hub: {error}") from error
    return Checkpoint(path, name, revision, trust_remote_code)


def _code(config: dict[str, Any]) -> list[str]:
    """Where a configuration says that its Python code is; a tokenizer's entry is a list of two, one of them None."""
    entries = (config.get("auto_map") or {}).values()
    return [part for entry in entries for part in ([entry] if isinstance(entry, str) else entry) if part]
