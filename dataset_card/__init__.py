"""The cards of both data sets, rendered from a build's manifest and files: no fact of a run is typed by hand.

All text of a run is data: seeds, answers and names of models show as text, whatever mark-up they hold.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from generation.builders.builder import FOLDERS
from generation.errors import DatasetError
from generation.prompts import Prompt, load_prompt
from generation.stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS
from generation.transfer import Statistics

from .examples import choose_examples, draw_record, first_rows

EMBEDDED_MODEL = "smollm2-135m"  # its text must not be taken for training data
SISTERS = {"unicorn-1.2m": "unicorn-471k-instruction", "unicorn-471k-instruction": "unicorn-1.2m"}
WORD_BIN = 50  # words of a caption, in a row of the card's table
_SIZES = {"n<1K": 3, "1K<n<10K": 4, "10K<n<100K": 5, "100K<n<1M": 6, "1M<n<10M": 7, "10M<n<100M": 8}  # powers of 10
_HUB_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail", "odc-by"}
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~$!^])")


def render_card(
    template: str,
    title: str,
    *,
    manifest: dict[str, Any],
    infos: Mapping[str, DatasetInfo],
    directory: Path,
    statistics: Path,
    repo_id: str | None,
) -> str:
    """Return the README of a built data set with its YAML header, and draw its figure into ``directory/figures/``.

    ``template`` is a file of this folder, ``title`` the name for people, ``manifest`` that of the build, ``infos``
    what ``datasets`` says about each config, ``statistics`` the transfer's file. The snippets load ``repo_id``, or the
    directory's name. A DatasetError says that a prompt was changed since the run, or a fact is missing.
    """
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": plain, "quote": _quote, "n": "{:,}".format, "json": _json, "link": _link}
    environment.filters["mean"] = _mean
    try:
        facts = _facts(manifest, infos, directory, repo_id) | {"transfer": Statistics.load(statistics).facts}
        draw_record(directory, facts["examples"][0])
        files = [environment.get_template(name) for name in (template, "_header.yaml")]
        text, header = [file.render(title=title, **facts) for file in files]
    except (jinja2.UndefinedError, KeyError) as error:
        raise DatasetError(f"{directory}: the card lacks a fact of the run: {error}. Run `verify` on it") from error
    data = DatasetCardData(**yaml.safe_load(header))
    DatasetInfosDict(infos).to_dataset_card_data(data)
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def plain(value: object) -> str:
    """Return Markdown that shows a value as it is, on one line."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", re.sub(r"^(\d+)([.)])|^([-+=])", r"\1\\\2\3", line))


def _quote(text: str) -> str:
    """Return a block quote that shows a text as it is, with its line breaks."""
    return "\n".join(f"> {plain(line)}  " for line in text.splitlines() if line.strip())


def _link(model: str) -> str:
    """Return a link to a model of the Hub, or its name if it is not on the Hub."""
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", model)
    return f"[{plain(model)}](https://huggingface.co/{model})" if known else plain(model)


def _json(value: object) -> str:
    """Return JSON for a fenced block, which it cannot end."""
    return json.dumps(value, indent=1, ensure_ascii=False).replace("```", "`\u200b``")


def _mean(counts: Mapping[str, int]) -> float:
    """Return the mean of numbers that are the keys of their counts; 0 for none."""
    return sum(float(value) * count for value, count in counts.items()) / max(1, sum(counts.values()))


def _facts(
    manifest: dict[str, Any], infos: Mapping[str, DatasetInfo], directory: Path, repo_id: str | None
) -> dict[str, Any]:
    """Return what the templates use."""
    from generation.metrics.caption_diversity.caption_diversity import measure

    stages, counts, name = manifest["stages"], manifest["counts"], manifest["name"]
    talks = [stage.name for stage in (*INSTRUCTIONS.values(), *JUDGEMENTS.values()) if stage.name in stages]
    captions = [stage.name for stage in (SEEDS, CAPTIONS, CAPTION_JUDGEMENTS) if stage.name in stages]
    funnel = {stage: _funnel(stages[stage]) for stage in talks or captions}  # the other data set's are left out
    prompts = _prompts([stages[stage].get("identity", {}) for stage in funnel])
    candidates = first_rows(directory / FOLDERS["default"], infos["default"].features)
    licenses, bins, rows = dict[str, dict[str, int]](), Counter[int](), infos["default"].splits["train"].num_examples
    for source, license in manifest["sources"].items():
        if counts["source"].get(source):
            licenses.setdefault(license, {})[source] = counts["source"][source]
    known = {license.lower() for license in licenses} & _HUB_LICENSES
    for words, count in counts["words"].items():
        bins[int(words) // WORD_BIN * WORD_BIN] += count
    return {
        **{"manifest": manifest, "counts": counts, "infos": infos, "tasks": TASKS, "repo_id": repo_id},
        "folders": FOLDERS,
        "rows": rows,
        "size": next(size for size, power in _SIZES.items() if rows < 10**power),
        "hub_license": next(iter(known), None) if len(licenses) == 1 else None,
        "load": repo_id or name,
        "revision": f"v{manifest['version']}" if repo_id else None,
        "sister": f"{repo_id.split('/')[0]}/{SISTERS[name]}" if repo_id else SISTERS[name],
        "examples": choose_examples(candidates, prompts),
        "diversity": measure([row["caption"] for row in candidates]) | {"captions": len(candidates)},
        "models": list(counts["model"]),
        "embedded": any(EMBEDDED_MODEL in model.lower() for model in counts["model"]),
        "licenses": licenses,  # rows by source, by licence
        "encoder": stages["text_embeddings"]["identity"],
        "truncated": sum(one["counts"].get("truncated", 0) for one in stages["text_embeddings"]["shards"].values()),
        "funnel": funnel,
        "prompts": prompts,
        "fields": {name: {field: "{" + field + "}" for field in prompt.warm_up} for name, prompt in prompts.items()},
        "words": {f"{low} to {low + WORD_BIN - 1}": count for low, count in bins.items()},
        "card": manifest["recipe"]["card"],
    }


def _funnel(stage: dict[str, Any]) -> dict[str, Any]:
    """Return rows, rejected rows by reason and tokens of a stage."""
    shards, rejected = stage["shards"].values(), Counter[str]()
    for shard in shards:
        rejected.update(shard["counts"].get("rejected") or {})
    tokens = sum(shard["counts"].get("completion_tokens") or 0 for shard in shards)
    return {"rows": sum(shard["rows"] for shard in shards), "rejected": rejected.most_common(), "tokens": tokens}


def _prompts(identities: list[dict[str, Any]]) -> dict[str, Prompt]:
    """Return the prompts that wrote the rows, by name; each must still be the one that the run used."""
    found = {}
    for identity in identities:
        if name := identity.get("prompt"):
            prompt = found[name] = load_prompt(name.split("@")[0])
            if prompt.sha256 != identity["prompt_sha256"]:
                raise DatasetError(f"prompt {name} was changed since the run; check out the code that made the run")
    return found
