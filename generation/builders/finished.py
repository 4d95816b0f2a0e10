"""A finished run as the builders read it: complete, with what its rows were made from."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..dedup import duplicate_groups
from ..errors import DatasetError
from ..files import read_json, write_json
from ..instructions import selection_inputs
from ..stages import CAPTION_JUDGEMENTS, CAPTIONS, INSTRUCTIONS, JUDGEMENTS, SEEDS, TASKS, TEXT_EMBEDDINGS
from ..stages import image_embeddings as image_stage
from ..store import Run
from ..transfer import Statistics
from ..transfer.stage import statistics_file, statistics_input
from ..vectors import VectorShard

NO_NAME = "^(/.*|unknown)$"  # what a server that serves a local directory, or a gateway, calls its model


class FinishedRun:
    """A run whose stages are complete, with ``instructions`` the instruction stages too. ``method`` is of the transfer
    (None: the recipe's); ``search`` has near-duplicates searched even if the recipe does not drop them. A DatasetError
    or RunError says that it is not a run, has no row or a model without a name, or that a stage is not complete."""

    def __init__(self, path: Path, method: str | None, instructions: bool, search: bool = False) -> None:
        if (path / "manifest.json").is_file() and not (path / "run.json").is_file():
            raise DatasetError(f"{path} is a built data set, not a run: give the run; data_dir= reads a built one")
        run = self.run = Run(path)
        self.method = method or run.recipe.transfer.method
        self.search = search or run.recipe.captions.drop_duplicates is not None
        self.vectors_stage, self.statistics = image_stage(self.method), statistics_file(run, self.method)
        self.tasks = [INSTRUCTIONS[task] for task in TASKS] if instructions else []
        identities = {stage: run.facts(stage).get("identity", {}) for stage in (CAPTIONS, *self.tasks)}
        self.imported = "imported" in identities[CAPTIONS]  # from the original's release
        inputs = {self.vectors_stage: statistics_input(run, self.method)}
        for stage, task in zip(self.tasks, TASKS, strict=False):
            inputs[stage] = {} if "imported" in identities[stage] else selection_inputs(run, task)
        judged = list(JUDGEMENTS.values()) if instructions else []
        stages = [SEEDS, CAPTIONS, TEXT_EMBEDDINGS, *inputs, *(judged if run.recipe.judge else [])]
        self.records = {stage: run.require(stage, inputs.get(stage)) for stage in stages}
        for stage in (CAPTION_JUDGEMENTS, *judged):
            if run.shards(stage):
                self.records.setdefault(stage, run.records(stage))
        self.shards = [shard for shard in self.records[CAPTIONS] if self.rows(shard)]
        if not self.shards:
            raise DatasetError(f"{path}: no row was accepted; the report shows the rejected rows by reason")
        self.model_name = run.recipe.server.model_name
        models = [str(identity.get("model", "")) for identity in identities.values()]
        if not self.model_name and (nameless := [model for model in models if re.fullmatch(NO_NAME, model)]):
            remedy = "`server: {model_name: OWNER/NAME}`, and give `run --config RECIPE`: nothing is made again"
            fault = f"the server calls the model that wrote the text {nameless[0]!r}"
            raise DatasetError(f"{path}: {fault}. Name it in the recipe, {remedy}")

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of all data files that rows and vectors come from, by path in the run."""
        named = [(stage.name, record.files) for stage, made in self.records.items() for record in made.values()]
        files = {f"{stage}/{name}": facts["sha256"] for stage, files in named for name, facts in files.items()}
        return {name: files[name] for name in sorted(files) if not name.endswith(".rejected.parquet")}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a build's manifest says of the run: among others the licence of each source of seeds, in alphabetical
        order, the number of captions with a near-duplicate (None: not searched), and a digest of the rows' origin."""
        columns, sources = ["source", "license"], dict[str, str]()
        tables = [self.run.table(SEEDS, shard, columns) for shard in self.records[SEEDS]]
        pairs = pa.concat_tables(tables).group_by(columns).aggregate([]).to_pydict()
        for source, text in sorted(zip(*pairs.values(), strict=True), key=str):
            sources[source] = f"{sources[source]}; {text}" if source in sources else text or "unknown"
        return {
            "method": self.method,
            "transfer": Statistics.load(self.statistics).facts,
            "dimension": VectorShard(self.run.verified(self.vectors_stage, self.shards[0])).dimension,
            "sources": sources,
            "original_id": self.imported,
            "duplicates": None if self.duplicates is None else len(self.duplicates),
            "digest": repr((self.hashes, self.model_name, self.duplicates)),
        }

    def rows(self, shard: int) -> int:
        """Return how many rows of the data set a caption shard gives."""
        return sum(self.records[stage][shard].rows for stage in self.tasks or (CAPTIONS,))

    @cached_property
    def duplicates(self) -> dict[str, str] | None:
        """The group of each caption that has a near-duplicate, or None if it was not searched for: that takes minutes
        for a million captions. The groups are kept in the run's ``.duplicates.json``, for the other data set too."""
        path = self.run.path / ".duplicates.json"
        captions = {name: digest for name, digest in self.hashes.items() if name.startswith("captions/")}
        known = read_json(path) if path.is_file() else {}
        if known.get("captions") != captions and self.search:
            write_json(path, known := {"captions": captions, "groups": duplicate_groups(self.run)})
        return dict(known["groups"]) if known.get("captions") == captions else None
