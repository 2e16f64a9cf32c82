"""The scope of words that state a constraint: they do so only where they are meant as one.

The same words may be negated (`do not end with a question`), bounded otherwise (`in 3 sentences or
so`), meant for a part of the answer (`at most 10 words per line`), said on a condition, or only be
what the request is about (`why do people write in all caps?`). Then they state nothing: a
constraint that is not recognised does less harm than one that is read as something else.
"""

from __future__ import annotations

import re

from alpaca_rlhf.checks.kinds import NUMBER, Phrasing

_SENTENCE_START = re.compile(r"(?<=[.!?])[\"”'’)\]]*\s+|\n|[。！？]")
_SENTENCE_END = re.compile(r"[.!?](?=[\"”'’)\]]*(?:\s|$))|\n|[。！？]")
_CLAUSE_START = re.compile(r"[,;:()，；：（）]|\s[-–—]\s")
_WORDS_BETWEEN = r"(?:[\s,]+(?:{}))*[\s,]*$"


def _ends(pattern: str, filler: str = "") -> re.Pattern[str]:
    """A pattern at the end of what comes before the words, with filler words in between."""
    gap = _WORDS_BETWEEN.format(filler) if filler else r"[\s,]*$"
    return re.compile(rf"(?:{pattern}){gap}", re.IGNORECASE)


_NEGATED = _ends(
    r"\b(?:not|never|no|nor|cannot|without|avoid|dont|instead\s+of|rather\s+than|refrain\s+from|stop"
    r"|forbidden|wrong|under\s+no\s+circumstances|no\s+need|neither|prohibited|optional)\b"
    r"|n['’]t\b|不要|别|请勿|不用|不必|无需|不得|避免|不能|不可",
    "ever|even|simply|just|please|have|need|want|you|me|it|to|write|answer|reply|respond|be|put|all"
    "|everything|only|always|necessarily|anything|a|the|your|answers?|text|feel|for|is|that|must"
    r"|using|use|or|any|obliged|required|in|under\s+any\s+circumstances|at\s+any\s+time",
)
_NOT_ONLY = re.compile(r"\bno\s+(?:more|less|fewer)\b|不超过|不少于|不多于", re.IGNORECASE)

# --- what may stand right before an order ---------------------------------------------------------

_ANSWER = (
    r"(?:your|the|this|my)\s+(?:whole\s+|entire\s+|full\s+|final\s+)?"
    r"(?:answer|response|reply|text|output|story|poem|essay|letter|message|summary|explanation)"
)
_ADVERBS = "please|also|then|just|only|always|finally|lastly|kindly|and|but|next|so|first|now|plus"
_ORDER = re.compile(
    rf"""(?:^|\b(?:{_ADVERBS})\b
    |\b(?:you|it|{_ANSWER})\s+(?:must|should|shall|will|may|can|could|would|ought\s+to
      |has\s+to|have\s+to|needs?\s+to)\b
    |\b(?:can|could|would|will)\s+you\b
    |\b(?:sure|careful|remember|try|please|want\s+you|like\s+you|need\s+you|ask\s+you|task\s+is
      |goal\s+is|rule\s+is|important|necessary|required)\s+to\b
    |(?:\b(?:not|never)|n['’]t)\s+(?:forget|fail|hesitate)\s+to\b
    |\b(?:sure|requirements?|rules?|that)\s+you\b
    )\s*(?:(?:{_ADVERBS})\s+)*$""",
    re.IGNORECASE | re.VERBOSE,
)
"""The end of what comes before an order in its clause."""
_RELATIVE = re.compile(r"\b(?:that|who|which|how\s+to|when\s+to|whether)\b", re.IGNORECASE)
_QUESTION = re.compile(
    r"^\W*(?:what|why|how|who|whom|whose|which|when|where|is|are|was|were|do|does|did|has|have|had"
    r"|should|shall|must|may|might|can|could|would|will)\b(?!\s+you\b)",
    re.IGNORECASE,
)
_FITS = re.compile(
    r"\b(?:how\s+(?:many|much|long|few)|possible|enough|fits?|(?:is|was|are)\s+(?:it|there))\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"^\W*(?:if|when|whenever|unless|once|in\s+case|as\s+soon\s+as)\b"
    r"(?!\s+(?:possible|you\s+can\b|(?:you\s+)?(?:answer|reply|respond|writ)\w*))",
    re.IGNORECASE,
)
_OTHERS_WRITE = re.compile(
    r"\b(?:how|why|when|where|who|that|which|whether|people|someone|somebody|one|they|he|she|we|I"
    r"|means?|mean\s+to|ways?\s+to|tips|advice|guide|rules?\s+for|poets?|authors?|writers?)\b"
    r"[^,;:]*\b(?:writ(?:e|es|ing|ten)|typ(?:e|es|ing|ed)|says?|texts?|texting|speaks?|express"
    r"|summari[sz]e|compose|repl(?:y|ies)|answers?|tells?|explains?|describes?|use[sd]?|using)\b"
    r"[^,;:]*$",
    re.IGNORECASE,
)
"""Somebody writes in some way: the request is about that."""
_PART = re.compile(
    r"\b(?:each|every|per)\b|\b(?:sentences?|paragraphs?|bullets?|points?|items?|lines?|sections?"
    r"|parts?|steps?|verses?|stanzas?|titles?|headings?|headlines?|introduction|conclusion"
    r"|entr(?:y|ies))\s+(?:(?:should|must|can|may)\s+)?(?:of|with|has|have|is|are|contains?)\s*$",
    re.IGNORECASE,
)
"""A part of the answer that the words belong to."""
_LETTERS_OF_ALL = re.compile(
    rf"""(?:^|[\s,])(?:
    (?:write|answer|respond|reply|type|speak|do\s+it|say\s+it|do\s+so|keep|put|make)
      (?:\s+(?:to\s+me|me|it|this|that|everything|all(?:\s+of\s+it)?|{_ANSWER}))?
    |(?:give|write|keep|put)\s+(?:me\s+)?{_ANSWER}
    |(?:{_ANSWER}|everything|it|all\s+of\s+it)\s+(?:(?:should|must|has\s+to|needs\s+to|shall)\s+be)
      (?:\s+(?:written|typed|kept))?
    )\s*(?:(?:entirely|completely|all|only|strictly)\s*)?$""",
    re.IGNORECASE | re.VERBOSE,
)
"""The whole answer is written in some letters."""
_TELLING = re.compile(
    r"^\W*(?:please\s+|can\s+you\s+|could\s+you\s+|would\s+you\s+)?(?:explain|describe|tell|summari"
    r"[sz]e|discuss|define|compose|draft|write\s+(?:me\s+)?an?|give\s+me\s+an?|invent|imagine)\b",
    re.IGNORECASE,
)

# --- what may stand right after it ----------------------------------------------------------------

_ANOTHER_BOUND = re.compile(
    rf"""[\s,(–—-]*(?:
    (?:or|max|maximum|min|minimum|at\s+(?:the\s+|a\s+)?(?:very\s+)?(?:most|least|minimum|maximum)
      |tops|ish|plus|roughly|give\s+or\s+take)\b
    |\+|(?:and|to)\s+(?:a\s+half|up|above|over|{NUMBER})\b|(?<=[-–—])(?:{NUMBER})\b
    |(?:and\s+)?(?:if\s+not|no|not)\s+(?:any\s+)?(?:more|fewer|less)\b
    |(?:but|and)\s+(?:(?:no|not)\s+(?:more|fewer|less|longer)\s+than|at\s+(?:most|least)|up\s+to
      |under|over)\s+(?:{NUMBER})(?!\s+\w)
    |以内|以上|以下|左右|到|至|或
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""The words after a number that make another bound of it."""
_PART_NOUNS = (
    r"(?:first|second|third|fourth|last|final|next|opening|closing|title|heading|headline|intro"
    r"|introduction|beginning|middle|body|summary|conclusion|list|sentences?|paragraphs?|bullets?"
    r"|lines?|sections?|parts?|steps?|reasons?|examples?|points?|definition|names?|description)"
)
_PART_AFTER = re.compile(
    rf"""[\s,(–—-]*(?:
    (?:per|each|apiece|if|when|whenever|unless|except|excepting|apart\s+from|other\s+than|until|again
      |(?:but\s+)?only\s+(?:in|for|when|if|the)|before|between|around|next\s+to)\b
    |(?:for|in|at|of)\s+(?:each|every|any|(?:the|your|a|an|one)\s+{_PART_NOUNS}\b)
    |(?:more|less|fewer)\s+than\b|too\s+(?:often|much)\b|(?:once|twice|thrice|exactly|sparingly)\b
    |(?:at\s+(?:least|most)|no\s+(?:more|less|fewer)\s+than)\b|(?:{NUMBER})\s+times\b
    |as\s+(?:a|an|the|your)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""The words after it that make it a part's, a condition's, or a count's."""
_OR = re.compile(r"[\s,]*or\b|或", re.IGNORECASE)
_SAYS_NO = re.compile(
    r"\b(?:not?|never|without|avoid|refrain|neither)\b|n['’]t\b|不", re.IGNORECASE
)
_LETTERS_END = re.compile(
    r"\s*(?:letters?\b\s*)?(?:(?:only|please|throughout|thanks?)\b\s*)*"
    r"(?:$|[.,;:!?)\n]|and\b|with\b|without\b|but\b|in\s+(?:exactly|at|no|your)\b)",
    re.IGNORECASE,
)
_NO_THINGS_END = re.compile(
    r"\s*(?:(?:at\s+all|please|whatsoever|anywhere|allowed|thanks?)\b\s*)*"
    rf"(?:$|[.,;:!?)\n]|and\b|n?or\b|but\b|in\s+(?:any\s+part\s+of\s+)?{_ANSWER})",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"(?:\s*,)?\s+(?P<word>(?:or|nor|and)\s+)?", re.IGNORECASE)
"""The words between one thing that is banned and the next."""
_NO_THINGS_START = re.compile(
    r"(?:^|\b(?:and|but|or|with|use|using|have|contain|include|be|please)\b)\s*$", re.IGNORECASE
)
_NUMBER_BEFORE = re.compile(r"[\d.,零一二三四五六七八九十百千两]$|[-–/]\s?$")
_BOUND_BEFORE = _ends(
    r"\b(?:least|most|than|to|or|and|up\s+to|about|around|roughly|approximately|nearly|almost|over"
    r"|under|between|minimum(?:\s+of)?|maximum(?:\s+of)?|max|min|some|hundred|thousand)\b|[~≤≥<>≈]"
    r"|至少|最多|至多|不超过|不少于|不多于|大约|超过"
)


def is_stated(text: str, match: re.Match[str], phrasing: Phrasing) -> bool:
    """True if the words of a phrasing that a text holds state their constraint there.

    Args:
        text: The prompt.
        match: Where the words stand.
        phrasing: The phrasing.
    """
    # 1. The sentence before the words, the clause before them, and what follows in the sentence.
    ends = match[0].rstrip()[-1] in ".。"
    start = max((gap.end() for gap in _SENTENCE_START.finditer(text, 0, match.start())), default=0)
    before, after = text[start : match.start()], "" if ends else text[match.end() :]
    clause = before[max((gap.end() for gap in _CLAUSE_START.finditer(before)), default=0) :]
    end = _SENTENCE_END.search(after)
    after, mark = (after[: end.start()], end[0]) if end else (after, "")
    # 2. Words that are quoted, negated, said on a condition, of a part, or bounded otherwise.
    if _is_quoted(text, match.start()) or _NEGATED.search(before):
        return False
    if _is_bounded(text, match, after) or (phrasing.form != "ban" and _PART_AFTER.match(after)):
        return False
    if _OR.match(after) and not _SAYS_NO.search(match[0]):
        return False
    if phrasing.chinese:
        return True
    if _CONDITION.search(before):
        return False
    # 3. Words that the request is about, by their place in the sentence.
    asks = mark == "?" and bool(_QUESTION.search(before))
    match phrasing.form:
        case "order":
            and_of_others = _RELATIVE.search(clause) and re.search(r"\b(?:and|but)\s*$", clause)
            return not asks and bool(_ORDER.search(clause)) and not and_of_others
        case "ban":
            placed = _NO_THINGS_START.search(clause) and _NO_THINGS_END.match(after)
            return not asks and bool(placed)
        case "letters":
            if not _LETTERS_END.match(after) or (asks and clause.strip()):
                return False
            if not clause.strip() or re.search(r"\b(?:and|but)\s*$", clause):
                return True
            whole = _LETTERS_OF_ALL.search(clause) or _TELLING.search(clause)
            return bool(whole) and not _OTHERS_WRITE.search(clause)
        case "manner":
            opening = match[0].split()[0].lower()
            part = clause + opening if opening in ("of", "with") else clause
            if _PART.search(part) or _OTHERS_WRITE.search(clause):
                return False
            numeric = "n" in match.groupdict()
            return not asks or not (_FITS.search(clause) if numeric else clause.strip())


def continued(text: str, ban: re.Match[str], phrasing: Phrasing) -> re.Match[str] | None:
    """The things that a ban goes on to, as in `never use commas or digits`; None if it does not.

    Args:
        text: The prompt.
        ban: Words that state a ban, or the thing it has gone on to before.
        phrasing: The continuation of a kind.
    """
    gap = _GOES_ON.match(text, ban.end())
    if gap is None or ban[0].rstrip()[-1] in ".。":
        return None
    match = phrasing.pattern.match(text, gap.end())
    if match is None:
        return None
    after = text[match.end() :]
    if gap["word"] is None:  # in a list, whose last thing has the word
        following = _GOES_ON.match(after)
        return match if following is not None and following["word"] else None
    return match if match[0].endswith((".", "。")) or _NO_THINGS_END.match(after) else None


def _is_quoted(text: str, start: int) -> bool:
    """True if a place stands within quotation marks."""
    paragraph = text[text.rfind("\n", 0, start) + 1 : start]
    opened = any(
        paragraph.count(opening) > paragraph.count(closing)
        for opening, closing in ("“”", "「」", "『』", "«»")
    )
    return (
        opened
        or paragraph.count('"') % 2 == 1
        or paragraph.count("`") % 2 == 1
        or paragraph.endswith(("'", "‘"))
    )


def _is_bounded(text: str, match: re.Match[str], after: str) -> bool:
    """True if other words around a number bound it otherwise, or if it counts nothing."""
    groups = match.groupdict()
    if "n" not in groups:
        return False
    before = text[: match.start("n")]
    if _NUMBER_BEFORE.search(before[-2:]) or _ANOTHER_BOUND.match(after):
        return True
    opens = match.start("n") == match.start() or not match[0].isascii()
    return opens and bool(_BOUND_BEFORE.search(text[: match.start()]))
