"""Markdown and maths as the elements of the Rank board, without a browser."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alpaca_rlhf.app.board import markup, markup_tree
from alpaca_rlhf.app.board.markup import MAX_CHARS, MAX_DEPTH, MAX_LINES

X_SQUARED = ["mrow", {}, ["msup", {}, ["mi", {}, "x"], ["mn", {}, "2"]]]


def span(kind, *children):
    return ["span", {"class": kind}, *children]


def formula(kind="formula", display="inline"):
    return span(kind, ["math", {"display": display, "alttext": "x^2"}, X_SQUARED])


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("**b** and `c`", [["p", {}, ["strong", {}, "b"], " and ", ["code", {}, "c"]]]),
        ("## Two\nx", [["h5", {"class": "level2"}, "Two"], ["p", {}, "x"]]),
        (
            "2. a\n7. b\n   - c",
            [
                [
                    "ol",
                    {},
                    ["li", {"value": "2"}, "a"],
                    ["li", {"value": "7"}, "b", ["ul", {}, ["li", {}, "c"]]],
                ]
            ],
        ),
        (
            "```py\na  b\n```",
            [["pre", {}, span("info", "py"), ["code", {}, "a  b"]]],
        ),
        ("```\nnever closed", [["pre", {}, ["code", {}, "never closed"]]]),
        ("[a](b 'c')", [["p", {}, span("link", "a"), span("address", ' (b "c")')]]),
        ("<https://x.y>", [["p", {}, span("link", "https://x.y")]]),
        ("![a *b*](c)", [["p", {}, span("image", "![a *b*](c)")]]),
        ("*a*\n  b", [["p", {}, ["em", {}, "a"], "\n  b"]]),
        ("&lt;b&gt;", [["p", {}, "<b>"]]),
        ("$x^2$.", [["p", {}, formula(), "."]]),
        ("\\(x^2\\)", [["p", {}, formula()]]),
        ("$$\nx^2\n$$", [formula("formula display scrolls", "block")]),
        ("a \\[x^2\\]", [["p", {}, "a ", formula("formula display scrolls", "block")]]),
        ("$\\href{x}{y}$", [["p", {}, span("formula", ["code", {}, "$\\href{x}{y}$"])]]),
        ("$\\def\\a{x}\\a$", [["p", {}, span("formula", ["code", {}, "$\\def\\a{x}\\a$"])]]),
    ],
)  # fmt: skip
def test_what_a_text_becomes(text, tree):
    assert markup_tree(text) == tree


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Plain words,\n    with an indentation.\n\nAnd more.",
        "It costs $5, not $10.",
        "I paid $5 for it and got 6$.",
        "US$5 and A$6",
        "[x](javascript:alert(1))",
        "<script>alert(1)</script>",
        "$$ never closed",
        "| a |\n|---|\n| 1 | a cell that tables leave out |",
        "> " * 40 + "deeper than is read",
        "**x** " * (MAX_CHARS // 6 + 1),
        "**x**\n" * (MAX_LINES + 1),
        "|a" * 100 + "\n" + "|-" * 100 + "\n" + "|b\n" * 100,
    ],
)
def test_what_is_shown_as_it_is(text):
    assert markup_tree(text) is None


@pytest.mark.parametrize(
    "tex",
    [
        r"$\sout{x>0}$",
        r"$\frac{\cancel{2}x}{\cancel{2}}$",
        r"$\sqrt{\mathstrut a}$",
        r"$\mathchoice{a}{b}{c}{d}$",
    ],
)
def test_a_formula_that_would_read_otherwise_is_shown_as_tex(tex):
    shown = json.dumps(markup_tree(f"It is {tex}."))
    assert '"math"' not in shown and json.dumps(tex).strip('"') in shown


def test_a_text_that_the_parser_cannot_read_is_shown_as_it_is(monkeypatch):
    def broken(*args):
        raise RuntimeError("none of the rules matched")

    monkeypatch.setattr(markup._PARSER, "parse", broken)
    assert markup_tree("**a text of this test alone**") is None


PATHOLOGICAL = [
    "*" * 4000 + "a" + "*" * 4000,
    "[" * MAX_CHARS,
    "![a](b" * (MAX_CHARS // 6),
    "> " * 15 + "a\n" * (MAX_LINES - 1),
    "- a\n" * (MAX_LINES - 1),
    "a*b_c~~" * (MAX_CHARS // 7),
    "`" * 99 + "".join("`" * i + "a" for i in range(99)),
    "$x\\$" * (MAX_CHARS // 4),
    "\\[\n" * (MAX_LINES - 1),
    "\\(" * (MAX_CHARS // 2),
    "$" + "{" * 400 + "}" * 400 + "$",
    "$" + "\\frac{1}{" * 90 + "}" * 90 + "$",
    "$\\newcommand{\\a}{\\a\\a}\\a$",
    "$" + "x_" * 400 + "$",
    "$$" + "\\begin{matrix}" * 60 + "$$",
    "$\\style{position:fixed}{x}\\class{y}{z}\\mathcolor{red}{x}\\color{red}x\\rule{9em}{9em}$",
    "$\\hspace{99em}\\kern-9em\\raise9em{x}\\Huge x\\llap{x}\\text{<b onload=x>}$",
]

ELEMENTS = """p h4 h5 h6 blockquote ul ol li pre code em strong s hr div span table thead tbody tr
th td math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover
mmultiscripts mprescripts none mtable mtr mtd mstyle""".split()
ATTRIBUTES = """class value display alttext mathvariant displaystyle scriptlevel stretchy fence
separator largeop movablelimits accent form linethickness width""".split()
CLASSES = """level1 level2 level3 level4 level5 level6 info link address image formula display
scrolls left center right""".split()


def check(node, depth=0):
    """Every element and attribute is harmless, and their depth is limited."""
    assert depth <= 2 * MAX_DEPTH + 2
    if isinstance(node, str):
        return
    tag, attributes, *children = node
    assert tag in ELEMENTS
    assert set(attributes) <= set(ATTRIBUTES)
    assert set(attributes.get("class", "").split()) <= set(CLASSES)
    assert attributes.get("value", "0").isdigit()
    assert len(attributes.get("width", "")) <= 8
    for child in children:
        check(child, depth + 1)


PIECES = [
    *"*_`~#>-+1.|[]()!<>$\\^{}&;:/\"'= \n",
    *("a", "b ", "\n\n", "    ", "```", "$$", "\\[", "\\]", "\u202e", "\u4e2d", "\x00", "\u0301"),
    *("<script>", "onload=x", "javascript:", "data:text/html,", "http://x.y", "&#60;", "|-|-|"),
    *("\\frac", "\\text", "\\href", "\\style", "\\color", "\\left(", "\\begin{matrix}", "\\\\"),
    *("\\hspace", "{9em}", "\\sqrt", "\\sum_"),
]
MARKUP = st.lists(st.sampled_from(PIECES), max_size=80).map("".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MARKUP | st.text())
def test_every_tree_is_made_of_harmless_elements(text):
    tree = markup_tree(text)
    for node in tree or []:
        check(node)
    json.dumps(tree)


@pytest.mark.parametrize("text", PATHOLOGICAL)
def test_pathological_texts_end_soon_and_are_harmless(text):
    for node in markup_tree(text) or []:
        check(node)
    json.dumps(markup_tree(text))


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([*'*_`~#>|[]()!-. \n"', "one", "two", "33", "```x\n", "|-|\n", "\n\n"]),
        max_size=60,
    ).map("".join)
)
@example("[one](two 'three') ![four](five)\n\n[six]: seven\n\n~~~ eight\nnine")
def test_no_word_is_hidden(text):
    tree = markup_tree(text)
    if tree is not None:
        shown = json.dumps(tree)
        for word in ("one", "two", "33"):
            assert shown.count(word) >= text.count(word)
