"""Collect the label lists of ``domains_full/`` from two unpacked wheels; run by hand, not part of any command.

    pip download --no-deps timm clip-benchmark     # here: timm 1.0.31 and clip-benchmark 1.6.2
    unzip -d wheels 'timm-*.whl' && unzip -d wheels 'clip_benchmark-*.whl'
    python benchmarks/collect_labels.py wheels

timm's wheel (Apache-2.0) holds the 21,844 synsets of ImageNet-21k with lemmas and definitions, which are WordNet 3.0's
(WordNet licence); that of clip-benchmark (MIT) holds class names of classification data sets. WordNet's graph is in
neither: ``collect_labels.yaml`` says how a synset's domain is read from its number or its definition, and which labels
are left out. So is what stands in ``not_labels.txt``, mistakes found by eye. A label stands in the first domain that
takes it.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import inflect
import yaml

_ENGLISH = inflect.engine()
_DATA = Path(__file__).parent.parent / "generation" / "seed_data"
_RULES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_UNWANTED = re.compile(rf"\b({'|'.join(_RULES['unwanted'])})|({'|'.join(_RULES['latin_endings'])})\b", re.I)
_ROOTS = {root: domain for domain, roots in _RULES["roots"].items() for root in roots.split("; ")}
_PLANTS, _ARTEFACTS = range(11552133, 13100678), range(2666196, 4612505)  # synset numbers
_LATIN, _SPECIES = re.compile(r"(us|um|is|ii|ae|a|ans|ens|ides|ata|ax|ix)$"), re.compile(r"[A-Z][a-z]+( [a-z]+)+$")
_PLANT_PARTS = re.compile(r"(the )?(fruit|wood|bark|root|seed|leaf|inflorescence)")
_END_OF_PHRASE = re.compile(rf"[;,:]| (?:{'|'.join(_RULES['end_of_phrase'].split())})\b")
_THE, _CATS = re.compile(_RULES["countries_with_the"]), re.compile("|".join(_RULES["breeds_of_cats"]))


def main(wheels: Path) -> None:
    """Write ``domains_full/<domain>.txt``, one label a line, and print how many there are of each."""
    names = json.loads((wheels / "clip_benchmark" / "datasets" / "en_classnames.json").read_text(encoding="utf-8"))
    found = _synset_labels(wheels / "timm" / "data" / "_info")
    found["flowers_and_herbs"] += [name for name in names["flowers"] if "?" not in name]
    for breed in names["pets"]:
        found["cats" if _CATS.match(breed) else "dogs"].append(breed)
    signs = [name.replace("bicyle", "bicycle").replace("horizonal", "horizontal") for name in names["gtsrb"]]
    found["traffic_signs"] = [n if n.endswith("sign") else f"{n} sign" for n in signs if "/" not in n]
    countries = [name for name in names["country211"] if "." not in name]
    found["countries"] = [f"the {name}" if _THE.search(name) else name for name in countries]
    common = {label.split()[-1] for labels in found.values() for label in labels if label.islower()}
    taken: set[str] = set()
    for domain, labels in found.items():
        fresh = {label.casefold(): label for label in reversed(labels)}
        if domain != "countries":  # "Boletus zelleri" goes, "Barbary ape" stays; Turkey is no bird
            latin = {key for key, n in fresh.items() if _SPECIES.match(n) and n.split()[-1] not in common}
            fresh = {key: name for key, name in fresh.items() if key not in taken | latin}
        taken |= fresh.keys()
        text = "".join(f"{label}\n" for label in sorted(fresh.values(), key=str.casefold))
        (_DATA / "domains_full" / f"{domain}.txt").write_text(text, encoding="utf-8")
        print(f"{len(fresh):6} {domain}")


def _synset_labels(info: Path) -> dict[str, list[str]]:
    """Return the synsets' labels by domain, those of narrow domains first."""
    tables = []
    for kind in ("lemma", "definition"):
        lines = (info / f"imagenet_synset_to_{kind}.txt").read_text(encoding="utf-8").splitlines()
        tables.append({int(line.split("\t")[0][1:]): line.rstrip("\n").split("\t")[1] for line in lines})
    lemmas, definitions = tables
    found: dict[str, list[str]] = {domain: [] for key in ("ranges", "plants", "roots") for domain in _RULES[key]}
    misread = set((_DATA / "not_labels.txt").read_text(encoding="utf-8").splitlines())
    by_name: dict[str, list[int]] = defaultdict(list)
    for synset in filter(_ARTEFACTS.__contains__, lemmas):
        by_name[lemmas[synset].split(", ")[0]].append(synset)
    # A name of several synsets, such as "strip", leads nowhere.
    artefacts = {n: definitions[synsets[0]] for n, synsets in by_name.items() if len(synsets) == 1 or n in _ROOTS}
    for synset, names in lemmas.items():
        label = _label(names)
        if label and label not in misread and not _UNWANTED.search(label):
            domain = _by_number(synset, definitions[synset])
            if domain is None and synset in _ARTEFACTS:
                domain = _by_definition(names.split(", "), definitions[synset], artefacts)
            if domain:
                found[domain].append(label)
    return found


def _label(names: str) -> str | None:
    """Return the first name of a synset that is not Latin, or None if it is plural or there is none."""
    for name in names.split(", "):
        words = name.split()
        latin = len(words) == 2 and words[0].istitle() and words[1].islower() and _LATIN.search(words[1])
        if not latin and not re.search(r"[\d./]", name):
            plural = _ENGLISH.singular_noun(words[-1]) and not re.search(r"(ss|us|is|os|as)$", words[-1])
            return None if plural or len(words) > 4 else name
    return None


def _by_number(synset: int, definition: str) -> str | None:
    for domain, ranges in _RULES["ranges"].items():
        if any(low <= synset <= high for low, high in ranges):
            return str(domain)
    if synset in _PLANTS and not _PLANT_PARTS.match(definition):
        places = [(m.start(), name) for name, words in _RULES["plants"].items() if (m := re.search(words, definition))]
        return min(places, default=(0, None))[1]  # the word that comes first decides
    return None


def _by_definition(names: list[str], definition: str, artefacts: dict[str, str]) -> str | None:
    """Return the domain of what a synset is, or of what that is, as far as the definitions lead."""
    steps, seen = names[:1], set(names)
    for _ in range(7):
        if domain := next((_ROOTS[step] for step in steps if step in _ROOTS), None):
            return str(domain)
        words = _END_OF_PHRASE.split(re.sub(r"\([^)]*\)", "", definition).strip())[0].split()
        steps = [" ".join(words[start:]) for start in range(len(words))]
        if step := next((step for step in steps if step in artefacts and step not in seen), None):
            steps, definition = [step], artefacts[step]
            seen.add(step)
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
