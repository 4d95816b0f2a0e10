"""What makes a clean synthetic caption a bad one, by reason code."""

from collections.abc import Callable, Mapping
from random import Random

from generation.rehearsal.scenes import caption, scene

FOREIGN = (
    "Eine alte Frau verkauft auf dem Markt frisches Gemüse und unterhält sich mit ihren Kunden.",
    "Hinter dem Stand liegen mehrere Kisten, die mit Äpfeln und Birnen gefüllt sind.",
    "Das Licht der Abendsonne fällt schräg auf die Dächer der umliegenden Häuser.",
    "Ein kleiner Hund schläft neben einem Korb, während die Leute vorübergehen.",
    "Una mujer mayor vende verduras frescas en el mercado y conversa con sus clientes.",
    "Detrás del puesto hay varias cajas llenas de manzanas y peras maduras.",
    "La luz de la tarde cae sobre los tejados de las casas vecinas.",
    "Une vieille dame vend des légumes frais au marché et parle avec ses clients.",
    "Derrière l'étal se trouvent plusieurs caisses remplies de pommes et de poires.",
    "La lumière du soir tombe sur les toits des maisons voisines.",
    "Een oude vrouw verkoopt verse groenten op de markt en praat met haar klanten.",
    "Achter de kraam staan meerdere kisten die met appels en peren zijn gevuld.",
    "Una donna anziana vende verdure fresche al mercato e parla con i suoi clienti.",
    "Dietro il banco ci sono diverse casse piene di mele e di pere mature.",
)
OTHER_SCRIPTS = (
    "一位老妇人在市场上卖新鲜蔬菜，和顾客聊天。摊位后面放着几个装满苹果和梨的箱子。",
    "Пожилая женщина продаёт на рынке свежие овощи и разговаривает с покупателями. За прилавком стоят ящики яблок.",
    "سيدة مسنة تبيع الخضروات الطازجة في السوق وتتحدث مع زبائنها. خلفها صناديق مليئة بالتفاح.",
)


def _mash(rng: Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(5, 9)))


def _garble(rng: Random, text: str) -> str:
    words = text.split()
    start = rng.randrange(len(words) - 20)
    way = rng.randrange(4)
    if way == 0:  # UTF-8 read as Windows-1252, as scraped text often is
        return text.replace("'", "’").replace("a ", "à ", 2).encode().decode("cp1252", "ignore")
    if way == 1:
        words[start : start + 14] = [_mash(rng) for _ in range(14)]
    elif way == 2:
        words.insert(start, "".join(rng.choices("ABCDEFGHabcdefghijklmnop0123456789+/", k=rng.randint(60, 200))))
    else:
        words[start : start + 20] = [
            "".join(rng.choices("#$%^&~=+@0123456789;/", k=rng.randint(3, 9))) for _ in range(20)
        ]
    return " ".join(words)


def _foreign(rng: Random, text: str) -> str:
    way = rng.randrange(3)
    if way == 0:
        return rng.choice(OTHER_SCRIPTS) * 3
    language = " ".join(rng.sample(FOREIGN, 7))
    return language if way == 1 else f"{text[: text.index('. ') + 1]} {language}"


def _loop(rng: Random, text: str) -> str:
    words, whole = text.split(), text.split(". ")
    start = rng.randrange(len(words) - 8)
    way = rng.randrange(3)
    if way == 0:
        again = rng.choice([sentence for sentence in whole[1:] if len(sentence.split()) > 5])
        return ". ".join([*whole[:-1], again, whole[-1]])
    run = words[start : start + rng.randint(2, 5)]
    return " ".join([*words[:start], *run * rng.randint(4, 9), *words[start + 5 :]])


def _insert(rng: Random, text: str, thing: str) -> str:
    words = text.split(" ")
    words.insert(rng.randrange(1, len(words)), thing)
    return " ".join(words)


def _shorten(rng: Random, text: str) -> str:
    short = text.split(". ")[0] + "."
    return short if len(short.split()) < 51 else "A quiet yard lies in the sun."


def _unfinished(rng: Random, text: str) -> str:
    return text[: rng.randrange(len(text) * 2 // 3, len(text) - 8)].rstrip(" .!?\"')") + rng.choice(("", ",", " and"))


def _refuse(rng: Random, text: str) -> str:
    says = (
        "I'm sorry, but I can't help with that request.",
        "I cannot describe this scene because I have not been given enough to go on.",
        "As much as I would like to help, I am unable to write about this.",
        "I apologize, but this goes against my guidelines.",
        "Unfortunately, I’m not able to provide that.",
        "I'm not comfortable writing about that.",
        "Sorry, but I must decline.",
        "My apologies, but that is not something to write about.",
        "There is not enough information to write a paragraph.",
        "We're sorry, this content is unavailable.",
        "Unfortunately, I cannot provide a detailed account.",
        "I don't have the ability to view pictures.",
        "No image was provided, so nothing can be said.",
    )
    return rng.choice(says) + rng.choice(("", f" {text}"))


def _talk(rng: Random, text: str) -> str:
    before = (
        "Sure, here is the paragraph you wanted:",
        "Certainly! Here's a detailed account of the scene.",
        "As an AI, this writer can only go by the words given.",
        "Here is the expanded version:",
        "This caption shows the following.",
        "Caption:",
        "Of course, here you go.",
        "Great! Let's begin.",
        "Below is the expanded paragraph.",
        "Based on your sentence, the following can be seen.",
        "Assistant:",
        "Revised caption:",
        "Let's picture the scene.",
        "Being an AI, one lacks eyes.",
    )
    after = (
        "Let me know if you would like any changes.",
        "I hope this helps with your project!",
        "The description above keeps to what can be seen.",
        "This paragraph stays within the limits set by the prompt.",
        "Would you like me to change anything?",
        "I've kept the language plain, as you asked.",
        "This is the rewritten version.",
        "Please note that some details are imagined.",
        "That makes about 110 words.",
        "Does this work for you?",
        "End of description.",
    )
    return f"{rng.choice(before)} {text}" if rng.random() < 0.6 else f"{text} {rng.choice(after)}"


def _mark_up(rng: Random, text: str) -> str:
    return rng.choice(
        (
            f"# {text}",
            f"- {text}",
            f"1. {text}",
            f"```{text}```",
            f"<p>{text}</p>",
            _insert(rng, text, "**bold**"),
            _insert(rng, text, "<br/>"),
            _insert(rng, text, "[gate](gate.html)"),
            f"{text}<|im_end|>",
            _insert(rng, text, "&nbsp;"),
        )
    )


def strange_letters(rng: Random, text: str) -> str:
    """``text`` with something in it that is no letter to a reader."""
    return _insert(
        rng,
        text,
        rng.choice(("\x00", "\x1b[31m", "\ufffd\ufffd", "\u202egate", "yard\u200b", "\ud83d", "\x07", "\ue000")),
    )


CAPTION_DEFECTS: Mapping[str, Callable[[Random, str], str]] = {
    "empty": lambda rng, text: rng.choice(("", " ", "\n\n", "\t")),
    "bad_characters": strange_letters,
    "garbled": _garble,
    "refusal": _refuse,
    "meta_talk": _talk,
    "markup": _mark_up,
    "several_paragraphs": lambda rng, text: text.replace(". ", rng.choice((".\n\n", ".\n")), rng.randint(1, 3)),
    "too_short": _shorten,
    "too_long": lambda rng, text: " ".join(caption(rng, scene(rng)) for _ in range(6)),
    "not_english": _foreign,
    "unfinished": _unfinished,
    "loop": _loop,
    "lost_seed": lambda rng, text: " ".join(
        rng.sample(
            (
                "A penguin colony covers the icy shore from one end to the other, and no yard of snow is left bare.",
                "Waves roll in under a bright polar sky, and a few birds dive from a ledge into the water.",
                "Chicks with fluffy down huddle between the adults, whose backs are turned to the wind.",
                "Far out, an iceberg with a flat top drifts along, and its foot shines through the swell.",
                "A research ship lies at anchor, and its orange funnel is the only warm spot in the whole bay.",
            ),
            5,
        )
    ),
}
