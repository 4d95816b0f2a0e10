"""The cards of both data sets, rendered from a build's manifest and files: no fact of a run is typed by hand. All text
of a run is data: seeds, answers and names of models show as text, whatever mark-up they hold."""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import pyarrow.parquet as pq
import yaml
from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from generation.builders.builder import FOLDERS, WITH_EMBEDDINGS
from generation.errors import DatasetError
from generation.prompts import load_prompt
from generation.stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS

Infos = Mapping[str, DatasetInfo]  # by config
CANDIDATES = 2_000  # rows from which the examples are chosen
EMBEDDED_MODEL = "smollm2-135m"  # its text must not be taken for training data
SISTERS = {"unicorn-1.2m": "unicorn-471k-instruction", "unicorn-471k-instruction": "unicorn-1.2m"}
WORD_BIN = 50  # words of a caption, in a row of the card's table
_SIZES = {"n<1K": 3, "1K<n<10K": 4, "10K<n<100K": 5, "100K<n<1M": 6, "1M<n<10M": 7, "10M<n<100M": 8}  # powers of 10
_HUB_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail", "odc-by"}
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+").fullmatch  # the name of a model
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~$!^])")


def render_card(
    template: str, title: str, manifest: dict[str, Any], infos: Infos, directory: Path, repo_id: str | None
) -> str:
    """Return the README of a built data set with its YAML header, and write its figure, ``figures/record.svg``.
    ``template`` is a file of this folder, ``title`` the name for people; the snippets load ``repo_id``, or the
    directory's name. A DatasetError says that a prompt was changed since the run, or a fact is missing."""
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    options: Any = {"autoescape": lambda name: name.endswith(".svg"), "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, undefined=strict, **options)
    environment.filters |= FILTERS
    try:
        facts = _facts(manifest, infos, directory, repo_id)
        files = [environment.get_template(name) for name in (template, "_header.yaml", "_record.svg")]
        text, header, figure = [file.render(title=title, **facts) for file in files]
    except (jinja2.UndefinedError, KeyError) as error:
        raise DatasetError(f"{directory}: the card lacks a fact of the run: {error}. Run `verify` on it") from error
    (directory / "figures").mkdir()
    (directory / "figures" / "record.svg").write_text(figure, encoding="utf-8")
    data = DatasetCardData(**yaml.safe_load(header))
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def plain(value: object) -> str:
    """Return Markdown that shows a value as it is, on one line."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", re.sub(r"^(\d+)([.)])|^([-+=])", r"\1\\\2\3", line))


FILTERS: dict[str, Any] = {
    "n": "{:,}".format,
    "text": plain,
    "link": lambda name: f"[{plain(name)}](https://huggingface.co/{name})" if _ON_HUB(name) else plain(name),
    "quote": lambda text: "\n".join(f"> {plain(line)}  " for line in text.splitlines() if line.strip()),
    "json": lambda value: json.dumps(value, indent=1, ensure_ascii=False).replace("```", "`\u200b``"),  # in a fence
    "mean": lambda counts: sum(float(value) * count for value, count in counts.items()) / sum(counts.values()),
    "wrap": lambda text, length: textwrap.wrap(textwrap.shorten(text, length, placeholder=" ..."), 68),
}


def _facts(manifest: dict[str, Any], infos: Infos, directory: Path, repo_id: str | None) -> dict[str, Any]:
    """Return what the templates use."""
    stages, counts, name = manifest["stages"], manifest["counts"], manifest["name"]
    talks = [stage.name for stage in (*INSTRUCTIONS.values(), *JUDGEMENTS.values()) if stage.name in stages]
    captions = [stage.name for stage in (SEEDS, CAPTIONS, CAPTION_JUDGEMENTS) if stage.name in stages]
    funnel = {stage: _funnel(stages[stage]) for stage in talks or captions}  # the other data set's are left out
    with pq.ParquetFile(min((directory / FOLDERS[WITH_EMBEDDINGS]).glob("*.parquet")), pre_buffer=False) as file:
        batch = next(file.iter_batches(CANDIDATES, use_threads=False))
    candidates = batch.drop_columns(["image_embedding"]).to_pylist()
    labels = {name: feature.names for name, feature in infos["default"].features.items() if hasattr(feature, "names")}
    for row, vector in zip(candidates, batch["image_embedding"], strict=True):
        row |= {name: names[row[name]] for name, names in labels.items()} | {"image_embedding": vector}
    licenses, bins = dict[str, dict[str, int]](), Counter[int]()
    for source, license in manifest["sources"].items():
        if rows := counts["source"].get(source):
            licenses.setdefault(license, {})[source] = rows
    texts = [re.findall(r"[\w']+", row["caption"].lower()) for row in candidates]
    known = {license.lower() for license in licenses} & _HUB_LICENSES
    for words, count in counts["words"].items():
        bins[int(words) // WORD_BIN * WORD_BIN] += count
    rows = infos["default"].splits["train"].num_examples
    return {
        **{"manifest": manifest, "counts": counts, "infos": infos, "repo_id": repo_id, "rows": rows},
        **{"card": manifest["recipe"]["card"], "tasks": TASKS, "folders": FOLDERS},
        "size": next(size for size, power in _SIZES.items() if rows < 10**power),
        "hub_license": next(iter(known), None) if len(licenses) == 1 else None,
        **{"load": repo_id or name, "revision": f"v{manifest['version']}" if repo_id else None},
        "sister": f"{repo_id.split('/')[0]}/{SISTERS[name]}" if repo_id else SISTERS[name],
        "examples": _examples(candidates),
        "type_token_ratio": fmean(len(set(words)) / len(words) for words in texts),
        "models": list(counts["model"]),
        "embedded": any(EMBEDDED_MODEL in model.lower() for model in counts["model"]),
        "licenses": licenses,  # rows by source, by licence
        "encoder": stages["text_embeddings"]["identity"],
        "truncated": sum(one["counts"].get("truncated", 0) for one in stages["text_embeddings"]["shards"].values()),
        "funnel": funnel,
        "dropped": sum((stage["dropped"] for stage in funnel.values()), Counter[str]()),
        "prompts": _prompts([stages[stage].get("identity", {}) for stage in funnel]),
        "words": {f"{low} to {low + WORD_BIN - 1}": count for low, count in bins.items()},
    }


def _examples(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one of the rows of each task, or of captions: of middling length, not refused by the judge."""
    chosen = []
    for task in (*TASKS, None):
        own = [row for row in rows if row.get("task") == task]
        sound = [row for row in own if row["judge"] in (None, 1.0)] or own
        ordered = sorted(sound, key=lambda row: len(str(row["conversations"])))
        chosen += ordered[len(ordered) // 2 :][:1]
    return chosen


def _funnel(stage: dict[str, Any]) -> dict[str, Any]:
    """Return rows, rejected rows and dropped questions by reason, and tokens of a stage."""
    counts = [shard["counts"] | {"rows": shard["rows"]} for shard in stage["shards"].values()]
    lost = [sum((Counter(one.get(key)) for one in counts), Counter[str]()) for key in ("rejected", "dropped")]
    rows, tokens = (sum(one.get(key) or 0 for one in counts) for key in ("rows", "completion_tokens"))
    return {"rows": rows, "rejected": lost[0].most_common(), "dropped": lost[1], "tokens": tokens}


def _prompts(identities: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the prompts that wrote the rows, and their messages; each must still be the one that the run used."""
    found = {}
    for name, known in ((one["prompt"], one["prompt_sha256"]) for one in identities if one.get("prompt")):
        prompt = load_prompt(name.split("@")[0])
        if prompt.sha256 != known:
            raise DatasetError(f"prompt {name} was changed since the run; check out the code that made the run")
        found[name] = prompt, prompt.messages({field: "{" + field + "}" for field in prompt.warm_up})
    return found
