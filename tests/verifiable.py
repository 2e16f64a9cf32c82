"""Answers to constraints that go together: the proof that they do.

It is put together of plain sentences, in all numbers and lengths that may do, until the judge finds
every constraint met. It shares no code with the checkers.
"""

import itertools
import json

from alpaca_rlhf.checks import Checks, read_request

FILLERS = (
    "My aunt goes there often.", "The door stands open.", "A small dog sleeps near it.",
    "Most of us stay for an hour.", "The old path leads to a hill.", "Her friends sing at dusk.",
    "Tall grass bends in the breeze.", "The bell rings late.", "It ends in a calm mood.",
    "One man smiles at the rest.", "His hat lies on the ground.", "The road is long and dusty.",
    "A letter lies on the table.", "The clouds drift to the east.", "No one is in a hurry.",
    "The shop sells bread and salt.", "Two cats doze in the shade.", "All of it costs little.",
    "They plan to return soon.", "The story has no end.", "He waits at the gate.",
    "Rain falls on the tiled roof.", "The first train leaves at dawn.", "A tired man rests.",
)  # fmt: skip
STARTS = {
    "A": "At first", "B": "Bit by bit", "D": "Day by day", "F": "For a start", "G": "Gladly",
    "H": "Here", "L": "Lately", "M": "Mostly", "N": "Now", "O": "Often", "P": "Perhaps",
    "R": "Rarely", "S": "Sometimes", "T": "Then", "W": "Well",
}  # fmt: skip
LETTERS = {
    "b": "bubble babble", "c": "circus cactus cocoa", "f": "fluffy fluff", "g": "giggling gagging",
    "k": "kick knack kiosk", "m": "mammoth memo mummy", "p": "puppy pepper", "u": "unusual museum",
    "v": "vivid verve valve", "w": "willow window swallow", "y": "yearly yoyo mystery",
    "h": "hush church high",
}  # fmt: skip
MENTIONS = (
    "They chat about {}.",
    "We read about {} today.",
    "He wrote {} on the wall.",
    "She likes {}.",
)


def witness(core, constraints, prompt):
    """An answer that meets all constraints of a prompt and scores well, or None."""
    arguments = {check.kind.name: check.arguments for check in constraints}
    for n_groups, n_fillers, subject_first in itertools.product(
        (0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 24), (True, False)
    ):
        text = _answer(core, arguments, n_fillers, n_groups, subject_first)
        if all(result.met for result in Checks().verdict(prompt, text, True).results):
            return text
    return None


def _answer(core, arguments, n_fillers, n_groups, subject_first):
    forbidden = arguments.get("leaves_out", {}).get("words", "").lower().split("|")
    n = {name: int(values.get("n", 0)) for name, values in arguments.items()}
    required = _required(arguments, n)
    statements = [part for part in required if not part.endswith("?")]
    if n_groups and len(statements) > 1:
        questions = [part for part in required if part.endswith("?")]
        required = [" and ".join(part.rstrip(".") for part in statements) + ".", *questions]
        if n_groups == 1 and questions:
            required = [f"{required[0][:-1]} and {questions[0]}", *questions[1:]]
    subject = core.subject
    fillers = [
        sentence
        for sentence in FILLERS
        if not {word.strip(".").lower() for word in sentence.split()} & {*forbidden}
        and arguments.get("letter_absent", {}).get("letter", "0").lower() not in sentence.lower()
    ]
    fillers = fillers[:n_fillers]
    if n_groups:  # few sentences with many words
        groups = [group for i in range(n_groups) if (group := fillers[i::n_groups])]
        fillers = [" and ".join(group).replace(".", "") + "." for group in groups]
    body = [*([f"Think of {subject}."] if subject_first else []), *required, *fillers]
    body = body or list(FILLERS[:1])
    return _laid_out(core, arguments, n, body)


def _required(arguments, n):
    """Sentences that hold what must occur."""
    parts = []
    for word in filter(None, arguments.get("contains_words", {}).get("words", "").split("|")):
        parts.append(MENTIONS[len(parts) % 4].format(word))
    for name in ("word_at_least", "word_exactly"):
        word = arguments.get(name, {}).get("word")
        have = sum(f" {word}" in part for part in parts)
        parts += [MENTIONS[i % 4].format(word) for i in range(n.get(name, 0) - have)]
    if "letter_at_least" in arguments:
        letter = arguments["letter_at_least"]["letter"].lower()
        words = " ".join([LETTERS[letter]] * 3)
        parts.append(f"See {words}.")
    numbers = ("It holds 12 of them.", "We saw 35 more.", "At last 7 were left.")
    parts += numbers[: n.get("has_digits", 0)]
    parts += ("Note *this part* first.", "Mind *that bit* too.", "Mark *the rest*.")[
        : n.get("starred", 0)
    ]
    parts += ("Ask [name] there.", "Come on [date].", "Write to [place].")[
        : n.get("placeholders", 0)
    ]
    parts += ("Some go (on foot).", "Some ride (on mules).")[: n.get("parentheses", 0)]
    parts += (
        ("It is a BIG GREAT day.", "We SANG and SHOUTED.") if "capital_words" in arguments else ()
    )
    parts += ("Days pass; it stays.",) if "semicolon" in arguments else ()
    parts += ("Is it so?", "Shall we go?", "Do they mind?")[: n.get("asks_questions", 0)]
    return parts


def _laid_out(core, arguments, n, body):
    if "one_exclamation" in arguments:
        body = [body[0][:-1] + "!", *body[1:]]
    if "begins_with" in arguments:
        body = [f"{arguments['begins_with']['phrase']} {body[0]}", *body[1:]]
    if "first_letter" in arguments:
        body = [f"{STARTS[arguments['first_letter']['letter'].upper()]} {body[0]}", *body[1:]]
    if "ends_with" in arguments:
        body = [*body, f"{arguments['ends_with']['phrase']}."]
        if n.get("sentences_exactly") or n.get("sentences_at_most"):
            body = [*body[:-2], f"{body[-2].rstrip('.!?')} and {body[-1]}"]
    if "ends_with_question" in arguments:
        body = [*body[:-1], body[-1].rstrip(".!?") + "?"] if len(body) > 1 else [*body, "Is it so?"]
    text = _shaped(arguments, n, body)
    if "repeat_request" in arguments:
        text = f"{core.text} {text}"
    if "title" in arguments:
        text = f"<<Title>>\n{text}"
    if "postscript" in arguments:
        text += "\nP.S. Do write soon."
    if "double_quotes" in arguments:
        text = f'"{text}"'
    if "lower_case" in arguments:
        text = text.lower()
    return text.upper() if "upper_case" in arguments else text


def _shaped(arguments, n, body):
    def groups(count):
        return [" ".join(body[i::count]) or "So it goes on." for i in range(count)]

    def in_order(count):
        body_of = ["So it goes on."] * (count - len(body)) + body
        cuts = [round(i * len(body_of) / count) for i in range(count + 1)]
        return [" ".join(body_of[a:b]) for a, b in itertools.pairwise(cuts)]

    if "bullets" in arguments:
        return "\n".join(f"- {part}" for part in in_order(n["bullets"]))
    if "numbered" in arguments:
        return "\n".join(f"{i}. {part}" for i, part in enumerate(in_order(n["numbered"]), 1))
    if "lines" in arguments:
        return "\n".join(in_order(n["lines"]))
    if "paragraphs" in arguments:
        return "\n\n".join(in_order(n["paragraphs"]))
    if "sections" in arguments:
        parts = in_order(n["sections"])
        return "\n".join(f"Part {i}\n{part}" for i, part in enumerate(parts, 1))
    if "two_answers" in arguments:
        first, second = in_order(2)
        return (
            f"{first} The first ends.\n******\n{second}"
            if len(body) > 1
            else f"{first} Yes it is.\n******\n{second}"
        )
    if "json" in arguments:
        keys = arguments["json"]["words"].split("|")
        return json.dumps(dict(zip(keys, groups(len(keys)), strict=True)))
    return " ".join(body)


def constraints_of(prompt):
    """The constraints of a prompt."""
    return read_request(prompt.instruction).constraints
