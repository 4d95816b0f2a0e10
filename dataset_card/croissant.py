"""A built data set as Croissant 1.0 tells it (https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html), for
the directory itself: the Hub writes its own for what it holds."""

import json
from typing import TYPE_CHECKING, Any

import datasets

from generation.builders.builder import FOLDERS
from generation.rundir import RunDir

if TYPE_CHECKING:
    from generation.builders.build import Built

PAPER = "https://arxiv.org/abs/2503.22655"
_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
    "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
    "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
CONTEXT: dict[str, Any] = {  # the specification's own, terms that are not used here included: readers compare it
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}


def render_croissant(title: str, description: str, run: RunDir, built: "Built") -> str:
    """``croissant.json`` of a built directory: a file set and a record set a config.

    Args:
        title: the data set's name.
        description: the data set's, in a sentence.
        run: the run it was built from.
        built: what was written.
    """
    sources = run.stage("seeds")["sources"].values()
    told = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": title,
        "description": description,
        "url": PAPER,
        "citeAs": PAPER,
        "license": sorted({source["license"] for source in sources}),
        "version": str(built.configs[0].info.version),
        "datePublished": run.manifest["created"][:10],
        "distribution": [_file_set(config.name) for config in built.configs],
        "recordSet": [_record_set(config.name, config.info.features) for config in built.configs],
    }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def _file_set(config: str) -> dict[str, Any]:
    name = f"{config}-files"
    facts = {"encodingFormat": "application/x-parquet", "includes": f"{FOLDERS[config]}/*.parquet"}
    return {"@type": "cr:FileSet", "@id": name, "name": name, **facts}


def _record_set(config: str, features: datasets.Features) -> dict[str, Any]:
    fields = [_field(config, name, feature) for name, feature in features.items()]
    return {"@type": "cr:RecordSet", "@id": config, "name": config, "field": fields}


def _field(config: str, name: str, feature: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"@type": "cr:Field", "@id": f"{config}/{name}", "name": name}
    source = {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": name}}
    if isinstance(feature, datasets.ClassLabel):
        told["description"] = ", ".join(f"{number}: {label}" for number, label in enumerate(feature.names))
    elif isinstance(feature, datasets.List):
        told["repeated"] = True
        feature = feature.feature
    if isinstance(feature, dict):
        return told | {"subField": [_part(config, name, part, source) for part in feature]}
    return told | {"dataType": _type(feature), "source": source}


def _part(config: str, name: str, part: str, source: dict[str, Any]) -> dict[str, Any]:
    """A text in each of a row's structs."""
    own = {"dataType": "sc:Text", "source": source | {"transform": [{"jsonPath": part}]}}
    return {"@type": "cr:Field", "@id": f"{config}/{name}/{part}", "name": part, **own}


def _type(feature: Any) -> str:
    kinds = {"string": "sc:Text", "float16": "sc:Float"}
    return kinds.get(feature.dtype, "sc:Integer")
