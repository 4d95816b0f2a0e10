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
from generation.prompts import Prompt, load_prompt
from generation.stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS
from generation.transfer import Statistics

from .examples import choose_examples, first_rows
from .figure import draw_record

EMBEDDED_MODEL = "smollm2-135m"  # its text must not be taken for training data
SISTERS = {"unicorn-1.2m": "unicorn-471k-instruction", "unicorn-471k-instruction": "unicorn-1.2m"}
WORD_BIN = 50  # words of a caption, in a row of the card's table
_SIZES = [("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7)]
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
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": plain, "quote": _quote, "n": "{:,}".format, "json": _json, "link": _link}
    try:
        facts = _facts(manifest, infos, directory, repo_id) | {"transfer": Statistics.load(statistics).facts}
        draw_record(directory, facts["examples"][0])
        text = environment.get_template(template).render(title=title, **facts)
    except (jinja2.UndefinedError, KeyError) as error:
        raise DatasetError(
            f"{directory}: the card lacks a fact of the run: {error}. Run `verify` on the run"
        ) from error
    return f"---\n{_header(title, facts, infos).to_yaml()}\n---\n\n{text}"


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


def _header(title: str, facts: dict[str, Any], infos: Mapping[str, DatasetInfo]) -> DatasetCardData:
    """Return the YAML header. The description of a config holds the digest of the contents: the cache key of
    ``datasets`` is made of this header, so that other contents are never read from the cache of these."""
    manifest, licenses = facts["manifest"], [name.lower() for name in facts["licenses"]]
    single = len(licenses) == 1 and licenses[0] in _HUB_LICENSES
    header = DatasetCardData(
        pretty_name=title,
        language=["en"],
        license=licenses[0] if single else "other",
        size_categories=[next(name for name, top in _SIZES if facts["rows"] < top)],
        task_categories=["image-text-to-text"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        source_datasets=["Yu2020/Unicorn" if manifest["original_id"] else "original"],
        tags=["synthetic", "text-only", "vision-language", "arxiv:2503.22655"],
    )
    if not single:
        header["license_name"] = "per-source" if len(licenses) > 1 else licenses[0]
        page = f"https://huggingface.co/datasets/{facts['repo_id']}" if facts["repo_id"] else ""
        header["license_link"] = f"{page}#licences"
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
    """Return what the templates use."""
    from generation.metrics.caption_diversity.caption_diversity import measure

    stages, counts, name = manifest["stages"], manifest["counts"], manifest["name"]
    talks = [stage.name for stage in (*INSTRUCTIONS.values(), *JUDGEMENTS.values()) if stage.name in stages]
    captions = [stage.name for stage in (SEEDS, CAPTIONS, CAPTION_JUDGEMENTS) if stage.name in stages]
    funnel = {stage: _funnel(stages[stage]) for stage in talks or captions}  # the other data set's are left out
    prompts = _prompts({stage: stages[stage] for stage in funnel})
    shards, licenses = stages["text_embeddings"]["shards"].values(), dict[str, dict[str, int]]()
    candidates = first_rows(directory / FOLDERS["default"], infos["default"].features)
    for source, license in manifest["sources"].items():
        if counts["source"].get(source):
            licenses.setdefault(license, {})[source] = counts["source"][source]
    return {
        "manifest": manifest,
        "counts": counts,
        "tasks": TASKS,
        "rows": infos["default"].splits["train"].num_examples,
        "configs": {
            config: {"files": len(list((directory / FOLDERS[config]).iterdir())), "bytes": info.download_size}
            for config, info in infos.items()
        },
        "repo_id": repo_id,
        "load": repo_id or name,
        "revision": f"v{manifest['version']}" if repo_id else None,
        "sister": f"{repo_id.split('/')[0]}/{SISTERS[name]}" if repo_id else SISTERS[name],
        "examples": choose_examples(candidates, prompts),
        "diversity": measure([row["caption"] for row in candidates]) | {"captions": len(candidates)},
        "models": list(counts["model"]),
        "embedded": any(EMBEDDED_MODEL in model.lower() for model in counts["model"]),
        "licenses": licenses,  # rows by source, by licence
        "encoder": stages["text_embeddings"]["identity"],
        "truncated": sum(shard["counts"].get("truncated", 0) for shard in shards),
        "funnel": funnel,
        "prompts": prompts,
        "fields": {name: {field: "{" + field + "}" for field in prompt.warm_up} for name, prompt in prompts.items()},
        "words": _words(counts["words"]),
        "card": manifest["recipe"]["card"],
        "duplicates": sum(counts["duplicate_group"].values()),
        "judged": sum(counts["judge"].values()),
        "judge": _mean(counts["judge"]),
        "grounded": _mean(counts["grounded"]),
    }


def _mean(counts: Mapping[str, int]) -> float:
    return sum(float(value) * count for value, count in counts.items()) / max(1, sum(counts.values()))


def _words(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return mean, least and most words of a caption, and rows by bins of words."""
    bins: Counter[str] = Counter()
    for words, count in counts.items():
        low = int(words) // WORD_BIN * WORD_BIN
        bins[f"{low} to {low + WORD_BIN - 1}"] += count
    known = [*counts] or ["0"]
    return {"mean": _mean(counts), "min": known[0], "max": known[-1], "bins": bins}


def _funnel(stage: dict[str, Any]) -> dict[str, Any]:
    """Return rows, rejected rows by reason and tokens of a stage."""
    shards, rejected = stage["shards"].values(), Counter[str]()
    for shard in shards:
        rejected.update(shard["counts"].get("rejected") or {})
    tokens = sum(shard["counts"].get("completion_tokens") or 0 for shard in shards)
    return {"rows": sum(shard["rows"] for shard in shards), "rejected": rejected.most_common(), "tokens": tokens}


def _prompts(stages: dict[str, Any]) -> dict[str, Prompt]:
    """Return the prompts that wrote the rows, by name; each must still be the one that the run used."""
    found = {}
    for identity in (stage.get("identity", {}) for stage in stages.values()):
        if name := identity.get("prompt"):
            prompt = found[name] = load_prompt(name.split("@")[0])
            if prompt.sha256 != identity["prompt_sha256"]:
                raise DatasetError(f"prompt {name} was changed since the run; check out the code that made the run")
    return found
