"""Collects the label lists of ``domains_full/`` from two unpacked wheels; run by hand, not part of any command.

    pip download --no-deps timm clip-benchmark     # here: timm 1.0.31 and clip-benchmark 1.6.2
    unzip -d wheels 'timm-*.whl' && unzip -d wheels 'clip_benchmark-*.whl'
    python tools/collect_labels.py wheels

timm's wheel (Apache-2.0) holds the 21,844 synsets of ImageNet-21k with lemmas and definitions, which are WordNet 3.0's
(WordNet licence); that of clip-benchmark (MIT) holds class names of classification data sets. WordNet's graph is in
neither, so a synset's domain is read in two ways:

- Animals, plants, fungi, food and places: from its number. WordNet numbers synsets by their place in a file that is
  sorted by topic and, inside it, by descent, so that the birds, say, are a few ranges. ``_RANGES`` names them.
- Artefacts, whose file is alphabetical: from its definition. "a stringed instrument that has ..." leads to the
  synset "stringed instrument", whose own definition leads to "musical instrument", one of ``_ROOTS``.

People are left out: ImageNet's labels of people offend and are mostly not to be seen. So are Latin names, words that
are plural already, what ``_UNWANTED`` names, and what stands in ``not_labels.txt``: mistakes of both ways of reading,
found by eye. A label stands in one domain, the first that takes it.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import inflect

_HERE = Path(__file__).parent.parent / "generation" / "seed_data" / "domains_full"
_UNWANTED = re.compile(
    r"\b(jew|gyps|nigger|negro|squaw|coolie|kaffir|bastard|bitch|brassiere|jockstrap|g-string|condom|tampon|dildo|"
    r"pessary|enema|urinal|nazi|gallows|guillotine|whore|concentration|death|gulag|torture|camp|sweatshop|douche|"
    r"genus|family|order|division|genital|rectal|procto|slippery dick)|(aceae|idae|ales|ota|edia|ulata|entata)\b",
    re.I,
)
_LATIN = re.compile(r"(us|um|is|ii|ae|a|ans|ens|ides|ata|ax|ix)$")
_SPECIES = re.compile(r"[A-Z][a-z]+( [a-z]+)+$")
# First and last synset number of each range.
_RANGES: dict[str, list[tuple[int, int]]] = {
    "dogs": [(2084732, 2114100)],
    "cats": [(2120997, 2131418)],
    "birds": [(1503061, 1625121), (1789386, 1862399), (2000954, 2062017)],
    "fish": [(1439121, 1501948), (2512053, 2665543)],
    "reptiles_and_amphibians": [(1627424, 1767700)],
    "insects_and_spiders": [(1769347, 1785000), (2159955, 2316000)],
    "sea_creatures": [(1905661, 1999767), (2316707, 2323902)],
    "mammals": [
        (1871265, 1894900),
        (2062430, 2084071),
        (2114367, 2120997),
        (2131653, 2152000),
        (2323902, 2511730),
    ],
    "fruit_and_vegetables": [(7705711, 7772147)],
    "drinks": [(7881205, 7936263), (7843775, 7844042)],
    "dishes_and_baking": [(7560652, 7705000), (7800740, 7881205)],
    "mushrooms": [(12983000, 13066448)],
    "landscapes": [(9191635, 9475292)],
}
_PLANTS = (11552133, 13100677)
_PLANT_WORDS = {
    "trees": re.compile(r"\b(trees?|pines?|palms?|oaks?|conifers?)\b"),
    "shrubs_and_vines": re.compile(r"\b(shrubs?|shrublets?|subshrubs?|bush|vines?|climbers?|woody)\b"),
    "flowers_and_herbs": re.compile(r"\b(flower(s|ed|ing)?|blossoms?|blooms?|heads|herbs?|plants?|orchids?|daisy)\b"),
}
_END_OF_PHRASE = re.compile(
    r"[;,:]| (?:that|which|with|for|used|of|in|on|to|having|worn|made|by|from|where|at|and|or|as|whose|consisting|"
    r"designed|usually|containing|so|covered|attached|when|driven|drawn|who|similar)\b"
)
_PLANT_PARTS = re.compile(r"(the )?(fruit|wood|bark|root|seed|leaf|inflorescence)")
_ROOTS = {
    "musical_instruments": "musical instrument;stringed instrument;wind instrument;keyboard instrument;drum;guitar;"
    "percussion instrument;brass;woodwind;organ;piano;bagpipe;violin;oboe;clarinet;lute;flute;trumpet;zither",
    "aircraft": "aircraft;airplane;helicopter;balloon;airship;glider;spacecraft;rocket;parachute;kite balloon",
    "boats_and_ships": "ship;boat;watercraft;sailing vessel;sailboat;warship;sailing ship;galley;steamer",
    "vehicles": "vehicle;wheeled vehicle;car;truck;motor vehicle;automobile;cart;carriage;wagon;bicycle;motorcycle;"
    "train;locomotive;tractor;sled;bus;self-propelled vehicle;bulldozer;railway car;van;horse-drawn vehicle",
    "furniture": "furniture;piece of furniture;chair;table;bed;cabinet;desk;sofa;bench;bookcase;stool;armchair;"
    "lamp;rug;carpet;curtain;wardrobe;cupboard;mirror;chest of drawers;couch;cradle",
    "clothing": "clothing;garment;coat;jacket;dress;skirt;shirt;hat;shoe;boot;footwear;headdress;sweater;trouser;"
    "blouse;cloak;gown;scarf;glove;robe;sandal;helmet;veil;necktie;collar;sock;undergarment;jewelry;necklace;"
    "attire;underwear;overgarment;skullcap",
    "buildings": "building;house;church;temple;shop;restaurant;hotel;tower;bridge;castle;fortress;dwelling;shed;"
    "monument;hall;factory;barn;stadium;theater;inn;mercantile establishment;place of worship;school;lighthouse;"
    "hut;public building;farm building;residence;mansion;hospital;museum;library;palace;tomb;mill;gateway;arch",
    "rooms_and_places": "room;kitchen;bedroom;bathroom;office;street;road;garden;park;market;plaza;playground;"
    "camp;harbor;dock;airport;railway station;way;path;staircase;corridor;courtyard;area;enclosure;yard;pool;"
    "compartment;gate;fence;wall;roof;facility;workplace",
    "tools_and_machines": "tool;hand tool;machine;saw;hammer;knife;wrench;drill;ax;plow;shovel;pliers;machinery;"
    "screwdriver;farm machine;garden tool;engine;motor;power tool;lathe;scissors;rake;cutting implement;edge tool;"
    "power saw;plane;implement;press",
    "kitchenware": "pot;pan;bowl;cup;plate;dish;kitchen utensil;utensil;spoon;fork;glass;jar;bottle;kettle;oven;stove;"
    "jug;pitcher;mug;cooker;tableware;cutlery;crockery;teapot;cooking utensil;kitchen appliance;beaker;vase;flask",
    "bags_and_boxes": "basket;barrel;box;bag;suitcase;luggage;can;bucket;sack;case;container;purse;cask;tub",
    "instruments_and_electronics": "measuring instrument;scientific instrument;optical instrument;camera;telescope;"
    "microscope;clock;timepiece;watch;telephone;radio;computer;receiver;amplifier;lens;thermometer;meter;electronic "
    "device;electronic equipment;scale;gauge;television;printer;measuring device;medical instrument;surgical "
    "instrument;timer;projector;loudspeaker;recorder;navigational instrument",
    "fabrics": "fabric;cloth;textile;cotton;wool;silk;lace;velvet;towel;blanket;quilt;bedclothes;linen",
    "weapons_and_armour": "weapon;gun;sword;cannon;rifle;pistol;firearm;spear;dagger;body armor;armor;artillery;bow;"
    "shotgun",
    "sports_equipment_and_toys": "sports equipment;game equipment;ball;racket;ski;toy;puzzle;doll;plaything;golf club;"
    "kite;exercise device;gymnastic apparatus;board game",
}
_ARTEFACTS = (2666196, 4612504)
_THE = re.compile(r"^(United|Netherlands|Philippines|Bahamas|Czech Rep|Dominican Rep|Maldives|Isle)| Islands$")


def main(wheels: Path) -> None:
    """Writes ``domains_full/<domain>.txt``, one label a line, and prints how many there are of each."""
    info = wheels / "timm" / "data" / "_info"
    lemmas, definitions = (_table(info / f"imagenet_synset_to_{kind}.txt") for kind in ("lemma", "definition"))
    names = json.loads((wheels / "clip_benchmark" / "datasets" / "en_classnames.json").read_text(encoding="utf-8"))
    found = _synset_labels(lemmas, definitions)
    found["flowers_and_herbs"] += [name for name in names["flowers"] if "?" not in name]
    pets = {"dogs": names["pets"], "cats": names["pets"]}
    cats = re.compile(r"Abyssinian|Bengal|Birman|Bombay|British|Egyptian|Maine|Persian|Ragdoll|Russian|Siamese|Sphynx")
    for domain, breeds in pets.items():
        found[domain] += [breed for breed in breeds if bool(cats.search(breed)) == (domain == "cats")]
    found["traffic_signs"] = _signs(names["gtsrb"])
    found["countries"] = [
        f"the {name}" if _THE.search(name) else name for name in names["country211"] if "." not in name
    ]
    common = {label.split()[-1] for labels in found.values() for label in labels if label.islower()}
    taken: set[str] = set()
    for domain, labels in found.items():
        fresh = {label.casefold(): label for label in reversed(labels)}
        if domain != "countries":  # "Boletus zelleri" goes, "Barbary ape" stays; Turkey is no bird
            fresh = {key: name for key, name in fresh.items() if key not in taken}
            latin = {key for key, name in fresh.items() if _SPECIES.match(name) and name.split()[-1] not in common}
            fresh = {key: name for key, name in fresh.items() if key not in latin}
        taken |= fresh.keys()
        text = "".join(f"{label}\n" for label in sorted(fresh.values(), key=str.casefold))
        (_HERE / f"{domain}.txt").write_text(text, encoding="utf-8")
        print(f"{len(fresh):6} {domain}")


def _signs(names: list[str]) -> list[str]:
    """Traffic signs, without those of two names and the source's misspellings."""
    names = [name.replace("bicyle", "bicycle").replace("horizonal", "horizontal") for name in names]
    return [name if name.endswith("sign") else f"{name} sign" for name in names if "/" not in name]


def _table(path: Path) -> dict[int, str]:
    rows = (line.rstrip("\n").split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {int(synset[1:]): text for synset, text in rows}


def _synset_labels(lemmas: dict[int, str], definitions: dict[int, str]) -> dict[str, list[str]]:
    """Labels by domain, those of narrow domains first."""
    found: dict[str, list[str]] = {domain: [] for domain in [*_RANGES, *_PLANT_WORDS, *_ROOTS]}
    roots = {root: domain for domain, words in _ROOTS.items() for root in words.split(";")}
    misread = set((_HERE.parent / "not_labels.txt").read_text(encoding="utf-8").splitlines())
    by_name: dict[str, list[int]] = defaultdict(list)
    for synset, names in lemmas.items():
        if _ARTEFACTS[0] <= synset <= _ARTEFACTS[1]:
            by_name[names.split(", ")[0]].append(synset)
    # A name of several synsets, such as "strip", leads nowhere.
    artefacts = {name: synsets[0] for name, synsets in by_name.items() if len(synsets) == 1 or name in roots}
    for synset, names in lemmas.items():
        label = _label(names)
        if label is None or label in misread or _UNWANTED.search(label):
            continue
        domain = _domain(synset, definitions[synset])
        if domain is None and _ARTEFACTS[0] <= synset <= _ARTEFACTS[1]:
            steps = _chain(names, definitions[synset], definitions, artefacts)
            domain = next((roots[step] for step in steps if step in roots), None)
        if domain:
            found[domain].append(label)
    return found


def _label(names: str) -> str | None:
    """The first name of a synset that is no Latin one; None if there is none, or if it is plural."""
    for name in names.split(", "):
        words = name.split()
        latin = len(words) == 2 and words[0].istitle() and words[1].islower() and _LATIN.search(words[1])
        if not latin and not re.search(r"[\d./]", name):
            plural = _ENGLISH.singular_noun(words[-1]) and not re.search(r"(ss|us|is|os|as)$", words[-1])
            return None if plural or len(words) > 4 else name
    return None


def _domain(synset: int, definition: str) -> str | None:
    for domain, ranges in _RANGES.items():
        if any(low <= synset <= high for low, high in ranges):
            return domain
    if _PLANTS[0] <= synset <= _PLANTS[1] and not _PLANT_PARTS.match(definition):
        places = [(place.start(), name) for name, words in _PLANT_WORDS.items() if (place := words.search(definition))]
        return min(places, default=(0, None))[1]  # the word that comes first decides
    return None


def _chain(names: str, definition: str, definitions: dict[int, str], artefacts: dict[str, int]) -> Iterator[str]:
    """What a synset is, and what that is, as far as the definitions lead."""
    seen = set(names.split(", "))
    yield from names.split(", ")[:1]
    for _ in range(6):
        plain = re.sub(r"\([^)]*\)", "", definition).strip()
        words = _END_OF_PHRASE.split(plain)[0].split()
        steps = [" ".join(words[start:]) for start in range(len(words))]
        step = next((step for step in steps if step in artefacts and step not in seen), None)
        if step is None:
            yield from steps
            return
        yield step
        seen.add(step)
        definition = definitions[artefacts[step]]


_ENGLISH = inflect.engine()

if __name__ == "__main__":
    main(Path(sys.argv[1]))
