# polite.py
import re

POLITE = re.compile(r"\b(please|thank|glad|welcome|happy to)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?]+")


def score(prompt, completion, finished):
    """Short, polite, and finished."""
    polite = bool(POLITE.search(completion))
    short = 1 <= len(SENTENCE_END.findall(completion)) <= 3
    return 0.5 * polite + 0.3 * short + 0.2 * finished
