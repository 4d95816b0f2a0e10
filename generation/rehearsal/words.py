"""What synthetic scenes are made of. The words were chosen without looking at the checks; some are there because a
careless check trips over them."""

COLOURS = (
    "red",
    "blue",
    "green",
    "grey",
    "yellow",
    "brown",
    "black",
    "white",
    "orange",
    "purple",
    "turquoise",
    "beige",
)
COUNTS = ("two", "three", "four", "five", "six", "seven")
AGES = ("young", "elderly", "tall", "bearded", "broad-shouldered", "grey-haired", "sturdy", "slender")
# (person, pronoun, possessive)
PEOPLE = (
    *(("fisherman", "he", "his"), ("baker", "she", "her"), ("gardener", "he", "his"), ("potter", "she", "her")),
    *(("blacksmith", "he", "his"), ("violinist", "she", "her"), ("bookbinder", "he", "his"), ("weaver", "she", "her")),
    *(
        ("carpenter", "he", "his"),
        ("beekeeper", "she", "her"),
        ("sailor", "he", "his"),
        ("veterinarian", "she", "her"),
    ),
    *(("street musician", "he", "his"), ("bicycle mechanic", "she", "her"), ("mail carrier", "he", "his")),
    *(("scuba diver", "she", "her"), ("railway porter", "he", "his"), ("glassblower", "she", "her")),
)
GARMENTS = ("apron", "jacket", "sweater", "coat", "cap", "scarf", "waistcoat", "raincoat", "shirt", "woollen hat")
# (third person, -ing form, why somebody does it)
ACTIONS = (
    ("mends a torn net", "mending a torn net", "Without the repair the fish would slip through the torn net."),
    ("kneads a lump of dough", "kneading a lump of dough", "Dough has to be kneaded before it can go into an oven."),
    (
        "sharpens a long knife",
        "sharpening a long knife",
        "A dull knife would slip, so it is sharpened before the work.",
    ),
    (
        "polishes a brass lamp",
        "polishing a brass lamp",
        "Brass goes dull with time, and polishing brings back its shine.",
    ),
    (
        "ties a bundle of reeds",
        "tying a bundle of reeds",
        "Loose reeds fall apart, so a tied bundle is easier to carry.",
    ),
    ("paints a garden chair", "painting a garden chair", "Fresh paint keeps rain from getting into a chair outdoors."),
    ("carves a small duck", "carving a small duck", "The duck is taking shape slowly, which needs a steady hand."),
    ("repairs a cracked vase", "repairing a cracked vase", "A cracked vase cannot hold water until it is repaired."),
    ("sorts a tray of seeds", "sorting a tray of seeds", "Good seeds are kept for planting and bad seeds thrown out."),
    ("folds a striped blanket", "folding a striped blanket", "A folded blanket takes up less room on a shelf."),
    ("studies a street map", "studying a street map", "Somebody who knows the streets would have no need of a map."),
    ("feeds a tabby cat", "feeding a tabby cat", "A cat that is fed by hand like this has learned to trust people."),
    ("pumps up a flat tyre", "pumping up a flat tyre", "Nobody can ride on a flat tyre, so air is pumped in first."),
    (
        "peels a heap of potatoes",
        "peeling a heap of potatoes",
        "A whole heap of potatoes is too much for one meal alone.",
    ),
    ("winds a ball of yarn", "winding a ball of yarn", "Yarn that is wound into a ball does not get tangled."),
)
PLACES = (
    *(
        "on a stone quay",
        "in a narrow courtyard",
        "beside a canal lock",
        "under a striped awning",
        "in a tiled kitchen",
    ),
    *("at the edge of an orchard", "on a wooden porch", "in a cluttered workshop", "beside a village well"),
    *("on a railway platform", "in a sunlit greenhouse", "at a market stall", "in front of St. Anne's chapel"),
    *("outside a small café", "behind a thatched barn", "in a vaulted cellar", "near the old harbour gate"),
)
# (several of them, material, where they are)
GROUPS = (
    ("buckets", "zinc", "along the wall"),
    ("baskets", "wicker", "on the ground"),
    ("crates", "pine", "beside the doorway"),
    ("jars", "glass", "on a low shelf"),
    ("stools", "oak", "around a table"),
    ("pots", "clay", "on the window sill"),
    ("bottles", "porcelain", "in a neat row"),
    ("boxes", "cardboard", "under the bench"),
    ("chairs", "iron", "near the steps"),
    ("trunks", "leather", "on a flat cart"),
)
BACKDROPS = (
    *("a row of poplars", "a whitewashed wall", "a flight of worn steps", "a rusty iron gate", "a half-open door"),
    *("a stack of firewood", "a field of ripe barley", "a pair of parked bicycles", "a line of drying laundry"),
    *("a pile of folded textiles", "a shelf of old books", "a curtain of climbing ivy", "a slanting tin roof"),
)
SIDES = ("left", "right")
HOURS = ("early morning", "late afternoon", "midday", "evening")
ANIMALS = ("a sleeping terrier", "a ginger cat", "a speckled hen", "a grey donkey", "a white goose", "a lame magpie")
ANIMAL_PLACES = (
    "beside the gate",
    "on an upturned crate",
    "in the shade",
    "at the foot of the wall",
    "on a straw mat",
)
# Sentences with marks and words that a careless check takes for something else.
ASIDES = (
    "The rough texture of the plaster shows wherever the paint has come off.",
    'A hand-painted sign above the entrance reads "Open" in tall letters.',
    "A brass plate by the bell bears the name Dr. Moreau in plain capitals.",
    "Bundles of textile scraps, mostly linen and wool, fill an open sack.",
    "The No. 7 tram, half hidden by a plane tree, waits at its stop.",
    "An out-of-date calendar hangs from a nail; its pages have gone yellow.",
    "A page of printed text lies open under a pair of round spectacles.",
    "Chalk marks cover a slate: a few sums, a crossed-out word and a naïve drawing of a fish.",
    "A jug of café au lait and a half-eaten brioche stand on a folded newspaper.",
    "The paving is uneven, and moss grows in the joints between the slabs.",
    "One pane of the window is cracked (the crack runs from corner to corner).",
    "A telephone with a text message on its screen lies face up on the ledge.",
    "A rope, thick as a wrist, is coiled in a loose figure of eight.",
    "Several postcards are pinned to the door, their corners curling in the damp air.",
    "Dust, wood shavings and a few bent nails lie where a broom has not yet been.",
    "A narrow passage with a low arch leads away to the back of the building.",
    "A metre-wide strip of gravel separates the planks from a bed of nettles.",
    "The sky is overcast, without a single gap in the even cover of cloud.",
)
