"""Cards of the data sets, rendered from a run's manifest and the built files: nothing that the run knows is typed by
hand, and a fact that is missing fails the build."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from generation import __version__
from generation.builders.builder import FOLDERS
from generation.errors import RunError
from generation.metrics.caption_diversity.caption_diversity import measure
from generation.progress import counted
from generation.prompts import load_prompt
from generation.rundir import RunDir
from generation.transfer import Fitted

if TYPE_CHECKING:
    from generation.builders.build import BuiltConfig

TEMPLATES = Path(__file__).parent
_SIZES = [("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7)]
DIVERSITY_SAMPLE = 20_000  # captions whose tokens are counted for the card
_OPEN_LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0"}


def render_card(template: str, title: str, run: RunDir, built: "list[BuiltConfig]") -> str:
    """The README of a built data set, its YAML header included.

    Args:
        template: a file of this folder.
        title: the data set's name.
        run: the run it was built from.
        built: what was written, config by config.

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


def _header(title: str, facts: dict[str, Any], built: "list[BuiltConfig]") -> DatasetCardData:
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
        source_datasets=["original"],
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
        for config in built
    ]
    DatasetInfosDict({config.name: config.info for config in built}).to_dataset_card_data(header)
    return header


def _facts(run: RunDir, built: "list[BuiltConfig]") -> dict[str, Any]:
    stages = run.manifest["stages"]
    generated = {
        name: record for name, record in stages.items() if name == "captions" or name.startswith("instructions/")
    }
    if not built[0].files:
        raise RunError(f"{run.path}: no row was accepted, so there is no data set to build; see {run.path}/rejected")
    method = next(name.split("/")[1] for name in stages if name.startswith("image_embeddings/"))
    return {
        "code_version": __version__,
        "run": run.manifest,
        "rows": built[0].info.splits["train"].num_examples,
        "configs": built,
        "example": built[0].example,
        "demonstration": any(record["demonstration"] for record in generated.values()),
        "models": sorted({record["fingerprint"]["model"]["id"] for record in generated.values()}),
        "encoder": stages["text_embeddings"]["fingerprint"],
        "method": method,
        "transfer": Fitted.load(run.path / "transfer" / f"{method}.safetensors").facts,
        "funnel": {name: _funnel(run, name) for name in generated},
        "seeds": sum(record["rows"] for record in stages["seeds"]["files"].values()),
        "sources": _sources(run),
        "prompts": [_prompt(recorded) for recorded in _recorded_prompts(generated.values())],
        "statistics": {name: record["statistics"] for name, record in generated.items() if name != "captions"},
        "diversity": _diversity(run),
        "truncated": sum(record["truncated"] for record in stages["text_embeddings"]["files"].values()),
    }


def _funnel(run: RunDir, stage: str) -> dict[str, Any]:
    """Rows, rejected rows by reason, and tokens of a stage, over its shards."""
    shards = [run.record(stage, shard) for shard in run.sealed(stage)]
    reasons: dict[str, int] = {}
    for shard in shards:
        for reason, count in shard["rejected_by_reason"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    return {
        "rows": sum(shard["rows"] for shard in shards),
        "rejected": reasons,
        "prompt_tokens": sum(shard["prompt_tokens"] for shard in shards),
        "completion_tokens": sum(shard["completion_tokens"] for shard in shards),
    }


def _diversity(run: RunDir) -> dict[str, float]:
    """Lengths of all captions, and the variety of tokens in captions spread evenly over the run."""
    step = -(-sum(run.record("captions", shard)["rows"] for shard in run.sealed("captions")) // DIVERSITY_SAMPLE)
    sample: list[str] = []
    lengths = []
    for shard in counted(run.sealed("captions"), "card, lengths", "shard"):
        captions = run.table("captions", shard)["caption"]
        sample += captions.take(pa.array(range(0, len(captions), step))).to_pylist()
        lengths.append(pc.list_value_length(pc.utf8_split_whitespace(captions)))
    words = pa.chunked_array([chunk for column in lengths for chunk in column.chunks], pa.int32())
    extremes = pc.min_max(words).as_py()
    exact = {"mean_words": pc.mean(words).as_py(), "min_words": extremes["min"], "max_words": extremes["max"]}
    return measure(counted(sample, "card, diversity", "caption")) | exact


def _sources(run: RunDir) -> dict[str, dict[str, Any]]:
    """Licence and captions of every seed source."""
    counts: dict[str, int] = {}
    for shard in counted(run.sealed("captions"), "card, sources", "shard"):
        for entry in pc.value_counts(run.table("captions", shard)["source"]).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    sources = run.stage("seeds")["sources"]
    return {name: {**sources[name], "captions": counts.get(name, 0)} for name in sorted(sources)}


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
