"""Markdown and maths of a text, as a tree of the few elements that the board builds.

No HTML is made on the way, so that there is none to sanitise: `markdown-it-py` splits a text into
tokens, `latex2mathml` a formula into elements, and whatever is not listed here becomes text.
Nothing is loaded and nothing can be clicked. Nothing is hidden either from those who judge a text:
the address of a link or an image is shown as text, line breaks and indentation are kept, and a
text that would lose letters is not formatted at all.
"""

from __future__ import annotations

import html
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

logger = logging.getLogger(__name__)

Node = str | list[Any]
"""A text, or an element: its tag, its attributes, its children."""

MAX_CHARS = 10_000
"""Characters of a text that is formatted; the time of some Markdown grows as their square."""
MAX_LINES = 1_000
MAX_TABLE_CELLS = 5_000
"""Most cells that a text could have: a row is filled up to the columns of its table."""
MAX_DEPTH = 32
"""Elements within each other; what lies deeper is part of the last."""
MAX_FORMULA_CHARS = 1_000
MAX_FORMULA_LINES = 40
_LONG_FORMULA_CHARS = 30
"""Longer formulas scroll where they are wider than the text."""
_CACHED_TEXTS = 256

TAGS = frozenset(
    "p h4 h5 h6 blockquote ul ol li pre code em strong s hr div span table thead tbody tr th td"
    .split()
)  # fmt: skip
"""Elements of Markdown."""
MATH_TAGS = frozenset(
    "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover "
    "mmultiscripts mprescripts none mtable mtr mtd mstyle".split()
)
"""Elements of MathML; `mphantom` and others that hide or move their content are missing."""
_MATH_ATTRIBUTES = {
    "display": re.compile("block|inline"),
    "mathvariant": re.compile("normal"),
    "displaystyle": re.compile("true|false"),
    "scriptlevel": re.compile("[0-2]"),
    "stretchy": re.compile("true|false"),
    "fence": re.compile("true|false"),
    "separator": re.compile("true|false"),
    "largeop": re.compile("true|false"),
    "movablelimits": re.compile("true|false"),
    "accent": re.compile("true|false"),
    "form": re.compile("prefix|infix|postfix"),
    "linethickness": re.compile("0"),
    "width": re.compile(r"[0-4](\.\d+)?em"),
}
"""Attributes of MathML with the values that they may have: no colour, size, address or style."""
_REFUSED_TEX = re.compile(
    r"\\(?:re|provide)?newcommand|\\def\b|\\newenvironment|\\DeclareMath|\\[hv]?phantom"
    r"|\\(?:href|style|class|mathchoice)\b|(?<!\\)%"
)
"""Macros, which can grow without limit, and what would hide a part: these are shown as TeX."""

# A formula is never longer than a limit, so that the search for an end that is missing is short.
_N = MAX_FORMULA_CHARS
_DISPLAY = (
    re.compile(rf"\$\$((?:[^$\\]|\\.){{1,{_N}}})\$\$", re.DOTALL),
    re.compile(rf"\\\[((?:[^\\]|\\[^\]]){{1,{_N}}})\\\]", re.DOTALL),
)
_IN_LINE = (
    re.compile(rf"\\\(((?:[^\\]|\\[^)]){{1,{_N}}})\\\)", re.DOTALL),
    # As in Pandoc: $5 and $10 is no formula, since a space is before the second sign.
    re.compile(rf"\$(?![\s$])((?:[^$\\\n]|\\[^\n]){{1,{_N}}})(?<!\s)\$(?!\d)"),
)
_PROSE = re.compile(r"[^\W\d_]{3,} [^\W\d_]{2,}")
"""Words in a row, outside of braces: "I paid $5 for it and got 6$" is no formula either."""


class _Parser(MarkdownIt):
    """CommonMark with tables and strikethrough, without HTML; addresses are kept as written."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False})
        self.enable(["table", "strikethrough"])
        self.disable("reference")  # a definition is a line that would vanish
        self.inline.ruler.at("newline", _newline)
        self.inline.ruler.before("escape", "formula", _inline_formula)
        self.block.ruler.before(
            "fence", "formula", _block_formula, {"alt": ["paragraph", "blockquote", "list"]}
        )

    def normalizeLink(self, url: str) -> str:
        return url

    def normalizeLinkText(self, link: str) -> str:
        return link


def _newline(state: StateInline, silent: bool) -> bool:
    """A line break, with the indentation after it: code without a fence and verse keep theirs."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.push("softbreak", "br", 0)
    state.pos += 1
    return True


def _push_formula(
    state: StateInline | StateBlock, matched: re.Match[str], *, display: bool
) -> None:
    token = state.push("formula", "math", 0)
    token.content, token.markup = matched[1].strip(), matched[0]
    token.info = "block" if display else "inline"


def _inline_formula(state: StateInline, silent: bool) -> bool:
    """A formula within a line: between $ and $, $$ and $$, or backslashed brackets."""
    if state.src[state.pos] not in "$\\":
        return False
    for pattern in (*_DISPLAY, *_IN_LINE):
        matched = pattern.match(state.src, state.pos, state.posMax)
        if matched is None:
            continue
        if matched[0].startswith("$") and not matched[0].startswith("$$"):
            before = state.src[state.pos - 1] if state.pos else " "
            words = re.sub(r"\{[^{}]*\}", "", matched[1])
            if before.isalnum() or before == "$" or _PROSE.search(words):
                continue
        if not silent:
            _push_formula(state, matched, display=pattern in _DISPLAY)
        state.pos = matched.end()
        return True
    return False


def _block_formula(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A formula on lines of its own, which may look like a list or a heading to Markdown."""
    start = state.bMarks[start_line] + state.tShift[start_line]
    if state.is_code_block(start_line) or not state.src.startswith(("$$", "\\["), start):
        return False
    last_line = start_line + 1
    while (
        last_line < min(end_line, start_line + MAX_FORMULA_LINES)
        and (state.isEmpty(last_line) or state.sCount[last_line] >= state.blkIndent)
    ):  # fmt: skip
        last_line += 1
    lines = state.getLines(start_line, last_line, state.blkIndent, False).lstrip(" ")
    for pattern in _DISPLAY:
        matched = pattern.match(lines)
        if matched is not None and not lines[matched.end() :].partition("\n")[0].strip():
            if not silent:
                state.line = start_line + lines[: matched.end()].count("\n") + 1
                _push_formula(state, matched, display=True)
            return True
    return False


_PARSER = _Parser()
_PARSER.parse("Its rules are compiled now, before threads share them.")


@lru_cache(_CACHED_TEXTS)
def markup_tree(text: str) -> list[Node] | None:
    """The elements of a text.

    Returns:
        None if the text has no markup, or is too long or too large a table to be formatted: it is
        then shown as it is.
    """
    lines = text.split("\n")
    n_columns = max(line.count("|") for line in lines)
    if len(text) > MAX_CHARS or len(lines) > MAX_LINES or n_columns * len(lines) > MAX_TABLE_CELLS:
        return None
    try:
        nodes = _Builder().build(_PARSER.parse(text))
    except Exception:  # whatever a text makes of the parser, it can be read as it is
        logger.exception("a text is shown as it is: its markup cannot be read")
        return None
    return None if _is_plain(nodes, text) or _lacks_some(nodes, text) else nodes


def _is_plain(nodes: Sequence[Node], text: str) -> bool:
    """True for paragraphs of nothing but the text itself."""
    written: list[str] = []
    for node in nodes:
        if isinstance(node, str) or node[0] != "p":
            return False
        if not all(isinstance(child, str) for child in node[2:]):
            return False
        written += node[2:]
    return "".join("".join(written).split()) == "".join(text.split())


def _lacks_some(nodes: Sequence[Node], text: str) -> bool:
    """True if letters or digits got lost, as in cells beyond the columns of a table."""
    source = Counter(filter(str.isalnum, html.unescape(text)))
    return bool(source - Counter(filter(str.isalnum, _written(nodes))))


def _written(nodes: Iterable[Node]) -> str:
    """All that the elements show of their source, formulas as TeX."""
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
            continue
        tag, attributes, *children = node
        parts += [attributes.get("value", ""), attributes.get("alttext", "")]
        if tag != "math":
            parts.append(_written(children))
    return "".join(parts)


class _Builder:
    """Makes elements of the parser's tokens."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._open = [self._nodes]

    def build(self, tokens: Sequence[Token]) -> list[Node]:
        """The elements of a whole text."""
        for token in tokens:
            self._add(token)
        return self._nodes

    def _start(self, tag: str, **attributes: str) -> None:
        if len(self._open) > MAX_DEPTH:  # too deep: the children go to the last element
            self._open.append(self._open[-1])
            return
        element: list[Any] = [tag, attributes]
        self._open[-1].append(element)
        self._open.append(element)

    def _end(self) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        children = self._open[-1]
        if children and isinstance(children[-1], str):
            children[-1] += text
        elif text:
            children.append(text)

    def _leaf(self, tag: str, text: str, **attributes: str) -> None:
        self._start(tag, **attributes)
        self._text(text)
        self._end()

    def _add(self, token: Token) -> None:
        kind = token.type
        if kind == "inline":
            for child in token.children or ():
                self._add(child)
        elif kind in ("text", "text_special"):
            self._text(token.content)
        elif kind in ("softbreak", "hardbreak"):
            self._text("\n")
        elif kind == "code_inline":
            self._leaf("code", token.content)
        elif kind in ("fence", "code_block"):
            self._start("pre")
            if token.info.strip():
                self._leaf("span", token.info.strip(), **{"class": "info"})
            self._leaf("code", token.content.removesuffix("\n"))
            self._end()
        elif kind == "hr":
            self._leaf("hr", "")
        elif kind == "image":
            self._leaf(
                "span", f"![{token.content}]({_address(token, 'src')})", **{"class": "image"}
            )
        elif kind == "formula":
            self._formula(token)
        elif kind == "link_open":
            self._start("span", **{"class": "link"})
            # An autolink is its own address.
            self._link = "" if token.markup == "autolink" else _address(token, "href")
        elif kind == "link_close":
            self._end_link()
        elif token.nesting and not token.hidden:
            self._element(token)

    def _element(self, token: Token) -> None:
        """Begin or end an element that Markdown and the tree have alike."""
        tag, attributes = token.tag, {}
        if token.type.startswith("heading"):
            attributes["class"] = f"level{tag[1]}"
            tag = f"h{min(int(tag[1]) + 3, 6)}"  # the board has headings of its own above these
        elif token.type == "list_item_open" and token.info:
            attributes["value"] = token.info.lstrip("0") or "0"  # as written, not as counted
        elif token.type in ("th_open", "td_open"):
            align = str(token.attrGet("style") or "").removeprefix("text-align:")
            attributes = {"class": align} if align else {}
        if token.type == "table_open":
            self._start("div", **{"class": "scrolls"})
        if token.nesting > 0:
            self._start(tag, **attributes)
        else:
            self._end()
        if token.type == "table_close":
            self._end()

    _link = ""
    """Address of the link that is open; links never lie within each other."""

    def _end_link(self) -> None:
        self._end()
        if self._link:
            self._leaf("span", f" ({self._link})", **{"class": "address"})

    def _formula(self, token: Token) -> None:
        display = token.info == "block"
        math = _math(token.content, token.info)
        scrolls = display or len(token.content) > _LONG_FORMULA_CHARS
        kinds = ["formula", *(["display"] if display else []), *(["scrolls"] if scrolls else [])]
        self._start("span", **{"class": " ".join(kinds)})
        if math is None:
            self._leaf("code", token.markup)
        else:
            self._open[-1].append(math)
        self._end()


def _address(token: Token, attribute: str) -> str:
    title = token.attrGet("title")
    return f"{token.attrGet(attribute) or ''}" + (f' "{title}"' if title else "")


def _math(tex: str, display: str) -> Node | None:
    """MathML of a formula; None where there is none."""
    if _REFUSED_TEX.search(tex):
        return None
    try:
        element = Converter(display=display).convert_to_element(tex)
        math = _mathml(element, MAX_DEPTH)
    except Exception:  # the converter has an exception for each mistake, and others slip through
        return None
    assert isinstance(math, list)
    math[1]["alttext"] = tex
    return math


def _mathml(element: Element, depth: int) -> Node:
    if depth == 0:
        raise ValueError("too deep")
    if element.tag in ("menclose", "mphantom"):  # as a row it would lose a strike, or show a strut
        raise ValueError(f"{element.tag} would change the meaning")
    tag = element.tag if element.tag in MATH_TAGS else "mrow"
    attributes = {
        name: value
        for name, value in element.attrib.items()
        if name in _MATH_ATTRIBUTES and _MATH_ATTRIBUTES[name].fullmatch(value)
    }
    node: list[Any] = [tag, attributes]
    text = html.unescape(element.text or "")
    if text:
        # Text is for the elements that have it; a row that holds some gets one of them.
        node.append(text if tag in ("mi", "mn", "mo", "mtext") else ["mtext", {}, text])
    for child in element:
        node.append(_mathml(child, depth - 1))
    return node
