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
from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from generation.builders.builder import FOLDERS
from generation.errors import DatasetError
from generation.prompts import load_prompt
from generation.stages import TASKS
from generation.transfer import Statistics

from .examples import choose_examples, first_rows
from .figure import draw_record

EMBEDDED_MODEL = "SmolLM2-135M"  # its text must not be taken for training data
SISTERS = {"unicorn-1.2m": "unicorn-471k-instruction", "unicorn-471k-instruction": "unicorn-1.2m"}
_SIZES = [("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7)]
_HUB_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail", "odc-by"}
_MARKUP = re.compile(r"([\\`*_{}\[\]#|~$!^])")
WORD_BIN = 50  # words of a caption in a row of the card's table


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
    """Return the README of a built data set with its YAML header, and draw its figure.

    Args:
        template: a file of this folder.
        title: the data set's name, for people.
        manifest: of the build.
        infos: what ``datasets`` says about each config.
        directory: the built files; the figure goes into its ``figures/``.
        statistics: the transfer's statistics file.
        repo_id: ``USER/NAME`` that the snippets load; None: the directory's name.

    Raises:
        DatasetError: a prompt was changed since the run, or the manifest lacks a fact.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": plain, "quote": _quote, "n": "{:,}".format, "json": _json, "link": _link}
    try:
        facts = _facts(manifest, infos, directory, repo_id) | {"transfer": Statistics.load(statistics).facts}
        draw_record(directory, facts["examples"][0])
        text = environment.get_template(template).render(title=title, **facts)
    except (jinja2.UndefinedError, KeyError) as error:
        raise DatasetError(f"{directory}: the card lacks a fact of the run: {error}. Run `verify` on it") from error
    return f"---\n{_header(title, facts, infos).to_yaml()}\n---\n\n{text}"


def plain(value: object) -> str:
    """Return Markdown that shows a value as it is, on one line."""
    line = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", re.sub(r"^(\d+)([.)])|^([-+=])", r"\1\\\2\3", line))


def _quote(text: str) -> str:
    """Return a block quote that shows a text as it is; the line breaks of a text stay."""
    return "\n".join(f"> {plain(line)}  " for line in text.splitlines() if line.strip())


def _link(model: str) -> str:
    """Return a link to a model of the Hub; the name alone if it is not the name of one."""
    return (
        f"[{plain(model)}](https://huggingface.co/{model})"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model)
        else plain(model)
    )


def _json(value: object) -> str:
    """Return JSON for a fenced block, which it cannot end."""
    return json.dumps(value, indent=1, ensure_ascii=False).replace("```", "`\u200b``")


def _header(title: str, facts: dict[str, Any], infos: Mapping[str, DatasetInfo]) -> DatasetCardData:
    """Return the YAML header. The description of a config holds the digest of the contents: the cache key of
    ``datasets`` is made of this header, so that other contents are never read from the cache of these."""
    manifest = facts["manifest"]
    licenses = {name.lower() for name in facts["licenses"]}
    single = len(licenses) == 1 and licenses <= _HUB_LICENSES
    header = DatasetCardData(
        pretty_name=title,
        language=["en"],
        license=licenses.pop() if single else "other",
        size_categories=[next(name for name, top in _SIZES if facts["rows"] < top)],
        task_categories=["image-text-to-text"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        source_datasets=["Yu2020/Unicorn" if manifest["original_id"] else "original"],
        tags=["synthetic", "text-only", "vision-language", "arxiv:2503.22655"],
    )
    if not single:
        header["license_name"] = "per-source" if len(facts["licenses"]) > 1 else next(iter(facts["licenses"]))
        base = f"https://huggingface.co/datasets/{facts['repo_id']}" if facts["repo_id"] else ""
        header["license_link"] = f"{base}#licences"
    header["configs"] = [
        {
            "config_name": name,
            "description": f"{info.description} Contents: {manifest['digest']}",
            "version": manifest["version"],
            "data_files": [{"split": "train", "path": f"{FOLDERS[name]}/train-*.parquet"}],
            **({"default": True} if name == "default" else {}),
        }
        for name, info in infos.items()
    ]
    DatasetInfosDict(infos).to_dataset_card_data(header)
    return header


def _facts(
    manifest: dict[str, Any], infos: Mapping[str, DatasetInfo], directory: Path, repo_id: str | None
) -> dict[str, Any]:
    stages, counts, rows = manifest["stages"], manifest["counts"], infos["default"].splits["train"].num_examples
    talks = any(name.startswith("instructions/") for name in stages)  # what concerns the other data set is left out
    own = {
        name: one
        for name, one in stages.items()
        if "embeddings" not in name and (not talks or name[-8:] != "captions")
    }
    prompts = _prompts(own)
    candidates = first_rows(directory / FOLDERS["default"], infos["default"].features)
    examples = choose_examples(candidates, prompts)
    models = sorted(counts["model"])
    licenses: dict[str, dict[str, int]] = {}  # rows by source, by licence
    for source, license in manifest["sources"].items():
        if counts["source"].get(source):
            licenses.setdefault(license, {})[source] = counts["source"][source]
    return {
        "manifest": manifest,
        "counts": counts,
        "rows": rows,
        "configs": {
            name: {
                "rows": info.splits["train"].num_examples,
                "files": len(list((directory / FOLDERS[name]).glob("*.parquet"))),
                "size": f"{info.download_size / 1e6:,.2f} MB",
            }
            for name, info in infos.items()
        },
        "repo_id": repo_id,
        "load": repo_id or manifest["name"],
        "revision": f"v{manifest['version']}" if repo_id else None,
        "sister": f"{repo_id.split('/')[0]}/{SISTERS[manifest['name']]}" if repo_id else SISTERS[manifest["name"]],
        "examples": examples,
        "embedded": any(EMBEDDED_MODEL.lower() in model.lower() for model in models),
        "models": models,
        "licenses": licenses,
        "encoder": stages["text_embeddings"]["identity"],
        "truncated": sum(
            shard["counts"].get("truncated", 0) for shard in stages["text_embeddings"]["shards"].values()
        ),
        "funnel": {name: _funnel(stage) for name, stage in own.items()},
        "tasks": TASKS,
        "prompts": [
            {
                "name": name,
                "sha256": prompt.sha256,
                "sampling": prompt.sampling,
                "messages": prompt.messages({field: "{" + field + "}" for field in prompt.warm_up}),
            }
            for name, prompt in prompts.items()
        ],
        "words": _words(counts["words"]),
        "card": manifest["recipe"]["card"],
        "duplicates": sum(counts["duplicate_group"].values()),
        "judged": sum(counts["judge"].values()),
        "judge": _mean(counts["judge"]),
        "grounded": _mean(counts.get("grounded", {})),
    }


def _mean(counts: Mapping[str, int]) -> float:
    return sum(float(value) * count for value, count in counts.items()) / max(1, sum(counts.values()))


def _words(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return mean, least and most words of a caption, and rows by bins of 50 words."""
    bins: Counter[str] = Counter()
    for words, count in counts.items():
        low = int(words) // WORD_BIN * WORD_BIN
        bins[f"{low} to {low + WORD_BIN - 1}"] += count
    return {"mean": _mean(counts), "min": next(iter(counts)), "max": list(counts)[-1], "bins": bins}


def _funnel(stage: dict[str, Any]) -> dict[str, Any]:
    """Return rows, rejected rows by reason and tokens of a stage."""
    shards, rejected = stage["shards"].values(), Counter[str]()
    for shard in shards:
        rejected.update(shard["counts"].get("rejected") or {})
    tokens = sum(shard["counts"].get("completion_tokens") or 0 for shard in shards)
    return {"rows": sum(shard["rows"] for shard in shards), "rejected": rejected.most_common(), "tokens": tokens}


def _prompts(stages: dict[str, Any]) -> dict[str, Any]:
    """Return the prompts that wrote the rows, by name; each must still be the one that the run used."""
    found = {}
    for identity in (stage.get("identity", {}) for stage in stages.values()):
        if name := identity.get("prompt"):
            prompt = found[name] = load_prompt(name.split("@")[0])
            if prompt.sha256 != identity["prompt_sha256"]:
                raise DatasetError(f"prompt {name} was changed since the run; check out the code that made the run")
    return found
