"""Cards of the data sets, rendered from a run's manifest and the built files: nothing that the run knows is typed by
hand, and a fact that is missing fails the build."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from generation import __version__
from generation.builders.builder import FOLDERS
from generation.builders.places import transfer_method
from generation.config import STAND_IN
from generation.errors import RunError
from generation.metrics.caption_diversity.caption_diversity import measure
from generation.progress import counted
from generation.prompts import load_prompt
from generation.rundir import RunDir
from generation.transfer import Fitted

from .pictures import draw

if TYPE_CHECKING:
    from generation.builders.build import Built

TEMPLATES = Path(__file__).parent
_SIZES = [("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7)]
_OPEN_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0"}


def render_card(template: str, title: str, run: RunDir, built: "Built") -> str:
    """The README of a built data set, its YAML header included.

    Args:
        template: a file of this folder.
        title: the data set's name.
        run: the run it was built from.
        built: what was written.

    Raises:
        RunError: the run lacks a fact that the card needs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    try:
        facts = _facts(run, built)
        text = environment.get_template(template).render(title=title, **facts)
    except (jinja2.UndefinedError, KeyError) as error:
        raise RunError(
            f"{run.path}: the card cannot be written, a fact is missing from the manifest: {error}"
        ) from error
    header = _header(title, facts, built)
    return f"---\n{header.to_yaml()}\n---\n\n{text}"


def _header(title: str, facts: dict[str, Any], built: "Built") -> DatasetCardData:
    licenses = {source["license"].lower() for source in facts["sources"].values()}
    single = len(licenses) == 1 and licenses <= _OPEN_LICENSES and facts["demonstration"]
    header = DatasetCardData(
        pretty_name=title,
        language=["en"],
        license=licenses.pop() if single else "other",
        size_categories=[next(name for name, top in _SIZES if facts["rows"] < top)],
        task_categories=["image-text-to-text"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        source_datasets=["Yu2020/Unicorn" if facts["imported"] else "original"],
        tags=["synthetic", "text-only", "vision-language", "arxiv:2503.22655"],
    )
    if not single:
        header["license_name"] = "mixed"
        header["license_link"] = "#licences"
    header["configs"] = [
        {
            "config_name": config.name,
            "version": str(config.info.version),
            "data_files": [{"split": "train", "path": f"{FOLDERS[config.name]}/train-*.parquet"}],
            **({"default": True} if config.name == "default" else {}),
        }
        for config in built.configs
    ]
    DatasetInfosDict({config.name: config.info for config in built.configs}).to_dataset_card_data(header)
    return header


def _facts(run: RunDir, built: "Built") -> dict[str, Any]:
    stages = run.manifest["stages"]
    generated = {
        name: record for name, record in stages.items() if name == "captions" or name.startswith("instructions/")
    }
    written_here = {name: record for name, record in generated.items() if not run.imported(name)}
    statistics = {name: record["statistics"] for name, record in generated.items() if name != "captions"}
    models = sorted({record["fingerprint"]["model"]["id"] for record in generated.values()})
    encoder = stages["text_embeddings"]["fingerprint"]
    method = transfer_method(run.manifest, run.path)
    return {
        "code_version": __version__,
        "run": run.manifest,
        "rows": built.configs[0].info.splits["train"].num_examples,
        "configs": built.configs,
        "examples": built.examples,
        "demonstration": any(record["demonstration"] for record in generated.values()),
        "models": models,
        "stand_ins": ["text"] * (STAND_IN in models) + ["vectors"] * (encoder["model"] == STAND_IN),
        "encoder": encoder,
        "method": method,
        "transfer": Fitted.load(run.path / "transfer" / f"{method}.safetensors").facts,
        "funnel": {name: _funnel(run, name) for name in generated},
        "seeds": sum(record["rows"] for record in stages["seeds"]["files"].values()),
        "sources": {name: {**stages["seeds"]["sources"][name], "rows": rows} for name, rows in built.sources.items()},
        "prompts": [_prompt(recorded) for recorded in _recorded_prompts(written_here.values())],
        "imported": _imported(run),
        "written_here": list(written_here),
        "statistics": statistics,
        "diversity": measure(counted(built.sample, "card, diversity", "caption")) | _words(built.lengths),
        "pictures": _pictures(built, statistics),
        "truncated": sum(record["truncated"] for record in stages["text_embeddings"]["files"].values()),
    }


def _words(lengths: list[int]) -> dict[str, float]:
    """Mean, least and most words of a caption, out of captions by length."""
    used = [words for words, captions in enumerate(lengths) if captions]
    mean = sum(words * captions for words, captions in enumerate(lengths)) / sum(lengths)
    return {"mean_words": mean, "min_words": used[0], "max_words": used[-1]}


def _pictures(built: "Built", statistics: dict[str, Any]) -> dict[str, str]:
    """Lengths; and of conversations the letters and the kinds of questions, all tasks together."""
    if not any("task" in example for example in built.examples):
        return draw(built.directory, built.lengths, {}, {})
    letters, kinds = Counter[str](), Counter[str]()
    for figures in statistics.values():
        letters.update(figures["letters"])
        kinds.update(figures["question_kinds"])
    return draw(built.directory, built.lengths, dict(sorted(letters.items())), dict(kinds.most_common(10)))


def _funnel(run: RunDir, stage: str) -> dict[str, Any]:
    """Rows, rejected rows by reason, and tokens of a stage, over its shards."""
    shards = [run.record(stage, shard) for shard in run.sealed(stage)]
    reasons: dict[str, int] = {}
    for shard in shards:
        for reason, count in shard["rejected_by_reason"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    funnel = {"rows": sum(shard["rows"] for shard in shards), "rejected": reasons, "imported": run.imported(stage)}
    if not funnel["imported"]:
        funnel["completion_tokens"] = sum(shard["completion_tokens"] for shard in shards)
    return funnel


def _imported(run: RunDir) -> dict[str, Any] | None:
    """The original's files that the captions were imported from, and what was found in them; None if they were not."""
    if not (files := run.imported("captions")):
        return None
    return {
        "files": files,
        "report": run.stage("import")["report"],
        "defects": run.stage("import")["fingerprint"]["defects"],
    }


def _recorded_prompts(records: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Each prompt that wrote rows, once: those of the stages, and those that rejected rows were asked again with."""
    recorded = [
        prompt
        for record in records
        for prompt in (record["fingerprint"]["prompt"], *(account["prompt"] for account in record.get("retried", ())))
    ]
    return list({prompt["sha256"]: prompt for prompt in recorded}.values())


def _prompt(recorded: dict[str, str]) -> dict[str, Any]:
    """A prompt in full; it must still be the one that the run used."""
    prompt = load_prompt(recorded["name"].split("@")[0])
    if prompt.sha256 != recorded["sha256"]:
        raise RunError(f"prompt {recorded['name']} was changed since the run; check out the version that made the run")
    return {
        "name": prompt.name,
        "sha256": prompt.sha256,
        "messages": prompt.messages({field: "{" + field + "}" for field in prompt.warm_up}),
        "sampling": prompt.sampling,
    }
