"""One HTML page about a generation: what stayed, what did not and why, and how varied it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.report.charts import Series, line_chart, share_bar
from alpaca_rlhf.report.generation_charts import CSS as PLOT_CSS
from alpaca_rlhf.report.generation_charts import histogram, sunburst
from alpaca_rlhf.report.generation_figures import Figures, figures_of
from alpaca_rlhf.report.markup import Markup, duration, element, join, large, money, number, table
from alpaca_rlhf.report.style import CSS

_VERBS = 12  # rows of the table beside the sunburst
_EXAMPLE = 150  # characters of an example of what a rule drops


def write_generation_report(
    folder: Path,
    out: Path,
    *,
    seconds: float | None = None,
    usd_per_million_tokens: float = 0.0,
) -> str:
    """Read the events of a generation and write its page, whole or not at all.

    Args:
        folder: Where the events lie.
        out: The page.
        seconds: How long it took, where that is known.
        usd_per_million_tokens: Price of what the teacher wrote, unless it told its cost.

    Returns:
        The headline, for a terminal.

    Raises:
        UserError: Files are missing or damaged, or the page cannot be written.
    """
    made = figures_of(folder)
    usd = made.usd if made.usd is not None else made.tokens * usd_per_million_tokens / 1e6
    atomic_write(out, _page(made, seconds, usd))
    return _headline(made)


def _headline(made: Figures) -> str:
    share = made.kept / made.written if made.written else 0.0
    return (
        f"{made.kept:,} of {made.target:,} tasks made; {share:.0%} of the {made.written:,} that "
        "the teacher wrote until then were kept"
    )


def _page(made: Figures, seconds: float | None, usd: float) -> str:
    manifest = made.manifest
    teacher = ", ".join(one["name"] for one in manifest.get("teachers", [])) or "unknown"
    sections = [
        ("dropped", "Why the others were dropped", _reasons(made)),
        ("time", "Acceptance over time", _over_time(made)),
        ("new", "How new the tasks are", _novelty(made)),
        ("long", "How long they are", _lengths(made)),
        ("verbs", "What they ask for", _verbs(made)),
        ("from", "Where they come from", _provenance(made)),
    ]
    body = [
        element("section", element("h2", title), content, id=anchor)
        for anchor, title, content in sections
        if content
    ]
    kicker = f" · generation · recipe {manifest.get('recipe')} · teacher {teacher}"
    top = element(
        "header",
        element("p", element("b", "alpaca-rlhf"), kicker, class_="kicker"),
        element("h1", f"{_headline(made)}."),
        _facts(made, seconds, usd),
    )
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    title = element("title", "alpaca-rlhf: a generation")
    style = element("style", Markup(CSS + PLOT_CSS))
    bottom = element("footer", "Written by alpaca-rlhf from the events beside it.")
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{title}{style}</head>\n'
        f"<body>{top}\n{element('main', *body)}\n{bottom}</body></html>\n"
    )


def _facts(made: Figures, seconds: float | None, usd: float) -> Markup:
    share = made.kept / made.written if made.written else 0.0
    facts = [
        ("Kept", f"{made.kept:,}", f"of {made.target:,} wanted"),
        ("Acceptance", f"{share:.1%}", f"of {made.written:,} written"),
        ("Requests", f"{made.requests:,}", f"{made.failed:,} given up"),
        ("Tokens", large(made.tokens), f"{number(made.tokens / max(1, made.kept), 0)} a kept task"),
    ]
    if seconds:
        facts.append(("Speed", f"{made.tokens / seconds:,.0f} tokens/s", duration(seconds)))
    facts.append(("Cost", money(usd), "what the teacher was paid"))
    cells = [
        element("div", element("dt", name), element("dd", value, element("small", note)))
        for name, value, note in facts
    ]
    return element("dl", *cells, class_="facts")


def _reasons(made: Figures) -> Markup:
    if not made.dropped:
        return Markup()
    most = max(made.kept, *made.dropped.values())
    rows = [("kept", made.kept, "tone-ppo")]
    rows += [(rule, count, "tone-bok") for rule, count in made.dropped.most_common()]
    lines = [
        element(
            "li",
            element("b", rule),
            share_bar(count / most, tone),
            element("span", _told(rule, count, made.written), class_="value"),
            element("small", _example(made.examples.get(rule, ""))),
        )
        for rule, count, tone in rows
    ]
    return element("div", element("ul", *lines, class_="reasons"), class_="card")


def _example(text: str) -> str:
    return text if len(text) <= _EXAMPLE else f"{text[: _EXAMPLE - 3]}..."


def _told(rule: str, count: int, written: int) -> str:
    if rule == "surplus":
        return f"{count:,}, after the target"
    return f"{count:,}, {count / max(1, written):.1%}"


def _over_time(made: Figures) -> Markup:
    few = len(made.acceptance) < 24
    series = [
        Series("since the point before", made.acceptance, "tone-ppo", dots=few),
        Series("of all so far", made.so_far, "tone-sft", dashed=True),
    ]
    note = (
        "Share of the written tasks that were kept. It falls as the teacher runs out of new ones."
    )
    chart = line_chart("Acceptance", series, note=note, x_label="requests")
    return element("div", chart, class_="card") if chart else chart


def _novelty(made: Figures) -> Markup:
    note = (
        "ROUGE-L of each kept task with the nearest seed task: 0 shares no word, 1 says the same."
    )
    chart = histogram(
        "Nearest seed task", made.novelty, note=note, x_label="ROUGE-L", domain=(0.0, 1.0), bins=25
    )
    return element("div", chart, class_="card") if chart else chart


def _lengths(made: Figures) -> Markup:
    cards = [
        histogram(name.capitalize(), values, note=_mean(values), x_label="words")
        for name, values in made.lengths.items()
    ]
    return element(
        "div", *(element("div", one, class_="card") for one in cards if one), class_="grid-3"
    )


def _mean(values: list[int]) -> str:
    return f"{len(values):,} of them, {number(sum(values) / max(1, len(values)), 1)} on average."


def _verbs(made: Figures) -> Markup:
    picture = sunburst(made.pairs)
    if not picture:
        return picture
    nouns: dict[str, Counter[str]] = defaultdict(Counter)
    for (verb, noun), count in made.pairs.items():
        nouns[verb][noun] += count
    common = sorted(nouns, key=lambda verb: (-nouns[verb].total(), verb))[:_VERBS]
    rows = [
        [verb, f"{nouns[verb].total():,}", ", ".join(n for n, _ in nouns[verb].most_common(4))]
        for verb in common
    ]
    caption = f"{made.pairs.total():,} of {made.kept:,} tasks have a verb and a noun."
    beside = table(["Verb", "Tasks", "Nouns"], rows, caption=caption, words=True)
    how = element("p", f"Verbs inside, their nouns outside. Found by: {made.parser}.")
    return join([how, element("div", picture, beside, class_="burst")])


def _provenance(made: Figures) -> Markup:
    manifest = made.manifest
    seeds = manifest.get("seeds", {})
    rows = [[f"teacher {one['name']}", f"licence {one['licence']}"]
            for one in manifest.get("teachers", [])]  # fmt: skip
    rows.append(["seed tasks", f"{seeds.get('rows', 0):,}, sha256 {seeds.get('sha256', '')}"])
    settings = manifest.get("settings", {})
    rows += [[name.replace("_", " "), str(value)] for name, value in settings.items()]
    rows.append(["seed", str(manifest.get("seed"))])
    caption = "The manifest beside the events holds the same."
    return table(["What", "Value"], rows, caption=caption, words=True)
