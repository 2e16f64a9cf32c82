"""The Data tab's figures as HTML. Every word that a person or a model wrote is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from alpaca_rlhf.preferences.agreement import FEWEST, Agreement
from alpaca_rlhf.preferences.battles import Score
from alpaca_rlhf.preferences.figures import Figures, Flagged, Person
from alpaca_rlhf.preferences.snapshot import Manifest

FILES = ("rankings.jsonl", "pairs.jsonl", "rankings.csv", "manifest.json")
Words = Mapping[str, str]


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def figures(found: Figures, says: Words) -> str:
    """Counts, quality and pace."""
    counts = ("rankings", "pairs", "open_places", "flags", "sets", "prompts", "completions")
    tiles = [(says[key], f"{found.counts[key]:,}") for key in (*counts, "judged", "battles")]
    tiles.insert(2, (says["last_hour"], f"{found.last_hour:,}"))
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles
    )
    chance = says["by_chance"].format(
        rate=_percent(found.first_slot_rate, says),
        expected=_percent(found.first_slot_expected, says),
    )
    gold = says["of"].format(rate=_percent(found.gold_rate, says), n=f"{found.gold_asked:,}")
    facts = [
        (says["median"], _seconds(found.median_s, says)),
        (says["first_slot"], chance if found.first_slot_rate is not None else says["none"]),
        (says["gold"], gold if found.gold_asked else says["none"]),
    ]
    agreements = [
        (name, f"{one.n:,}", *(_measure(one, value, says) for value in (one.alpha, one.tau)))
        for name, one in (
            (says["agreement"], found.agreement),
            (says["consistency"], found.self_consistency),
            *((says["with_people"].format(name=name), one) for name, one in found.judges),
        )
    ]
    most = max((n for _, n in found.by_day), default=1)
    days = [(day, _bar(n, most)) for day, n in reversed(found.by_day)]
    heads = [says[one] for one in ("measure", "overlaps", "alpha", "tau")]
    return (
        f'<h3>{escape(says["overview"])}</h3><dl class="tiles">{shown}</dl>'
        f"<h3>{escape(says['quality'])}</h3>{table((), facts)}{table(heads, agreements)}"
        f"<h3>{escape(says['pace'])}</h3>"
        + (table([says["day"], says["rankings"]], days) if days else _nothing(says))
    )


def scores(found: Sequence[Score], says: Words) -> str:
    """Win rates of each two policies, both ways round in one row."""
    rows = [
        (
            one.first,
            one.second,
            _rate(*one.rate),
            f"{one.wins:,}",
            f"{one.losses:,}",
            f"{one.ties:,}",
        )
        for one in found
    ]
    names = ("policy", "against", "win_rate", "wins", "losses", "ties")
    head = f"<h3>{escape(says['scores'])}</h3>"
    return head + (table([says[one] for one in names], rows) if rows else _nothing(says))


def _rate(share: float, low: float, high: float) -> str:
    return f"{share:.1%} [{low:.1%}, {high:.1%}]"


def people(found: Sequence[Person], says: Words, *, local: Iterable[int], me: int) -> str:
    """Everybody with what an admin may do to them."""
    without = {*local, *(one.id for one in found if one.role == "judge")}
    rows = []
    for one in found:
        first = says["none"]
        if one.first_slot_rate is not None:
            expected = _percent(one.first_slot_expected, says)
            first = f"{_percent(one.first_slot_rate, says)} ({expected})"
        gold = says["of"].format(rate=_percent(one.gold_rate, says), n=one.gold_asked)
        role = says[f"role.{one.role}"] + ("" if one.active else f", {says['inactive']}")
        rows.append(
            (
                one.name,
                role,
                f"{one.rankings:,}",
                f"{one.pairs:,}",
                _seconds(one.median_s, says),
                first,
                gold if one.gold_asked else says["none"],
                Html("" if one.id in without else _actions(one, says, mine=one.id == me)),
            )
        )
    heads = [
        says[one]
        for one in ("name", "role", "rankings", "pairs", "time", "first", "gold.short", "actions")
    ]
    return f"<h3>{escape(says['people'])}</h3>" + table(heads, rows)


def flags(found: Sequence[Flagged], says: Words) -> str:
    """Flags that wait, each with its buttons."""
    if not found:
        return f"<h3>{escape(says['flagged'])}</h3>" + _nothing(says)
    items = []
    for one in found:
        who = says["flag.by"].format(who=one.annotator, set=one.candidate_set)
        meant = f" · {says['flag.answer'].format(id=one.completion)}" if one.completion else ""
        buttons = _button("resolve", one.id, says["flag.resolve"], one.reason) + _button(
            "retire", one.id, says["flag.retire"], one.reason, extra=one.candidate_set
        )
        items.append(
            f"<li><strong>{escape(one.reason)}</strong> <span class='quiet'>{escape(who + meant)}"
            f"</span><p class='said'>{escape(one.text)}</p>"
            f"<blockquote>{escape(one.prompt)}</blockquote><p>{buttons}</p></li>"
        )
    return f"<h3>{escape(says['flagged'])}</h3><ul class='flags'>{''.join(items)}</ul>"


def intro(says: Words) -> str:
    """What a snapshot is."""
    return f"<h3>{escape(says['export'])}</h3><p>{escape(says['export.what'])}</p>"


def exported(made: Manifest, folder: Path, command: str, own: bool, says: Words) -> str:
    """What a snapshot holds, where it lies, and what to do with it."""
    told = says["export.done"].format(
        rankings=f"{made.rankings:,}", judged=f"{made.judged:,}", pairs=f"{made.pairs:,}"
    )
    links = " · ".join(
        f'<a href="/snapshots/{escape(folder.name)}/{name}" download>{name}</a>' for name in FILES
    )
    rows = [
        (says["export.folder"], Html(f"<code>{escape(str(folder))}</code>")),
        ("sha256", Html(f"<code>{escape(made.sha256)}</code>")),
        (says["export.download"], Html(links)),
    ]
    note = f"<p>{escape(says['export.own'])}</p>" if own else ""
    return (
        f"<p><strong>{escape(told)}</strong></p>{table((), rows)}"
        f"<p>{escape(says['export.next'])}:</p><pre><code>{escape(command)}</code></pre>{note}"
    )


def message(text: str, *, good: bool = True) -> str:
    """A line that tells how something went."""
    return f'<p class="{"good" if good else "bad"}" role="status">{escape(text)}</p>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first cell of a row is its name."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{_cell(one)}</th>' if at == 0 else f"<td>{_cell(one)}</td>"
            for at, one in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return (
        '<div class="scroll" tabindex="0" role="group">'
        f"<table>{top}<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def _actions(one: Person, says: Words, *, mine: bool) -> str:
    password = _button("password", one.id, says["user.password"], one.name)
    if mine:
        return password
    active = ("off", says["user.off"]) if one.active else ("on", says["user.on"])
    other = "annotator" if one.role == "admin" else "admin"
    buttons = [(active[0], active[1]), (other, says[f"user.{other}"])]
    return "".join(_button(do, one.id, text, one.name) for do, text in buttons) + password


def _button(do: str, number: int, text: str, of: str, *, extra: int = 0) -> str:
    return (
        f'<button type="button" data-do="{do}" data-id="{number}" data-extra="{extra}"'
        f' aria-label="{escape(text)}: {escape(of)}">{escape(text)}</button>'
    )


def _bar(n: int, most: int) -> Html:
    return Html(f'<span class="bar" style="width:{n / most * 60:.1f}%"></span> {n:,}')


def _measure(one: Agreement, value: float | None, says: Words) -> str:
    if value is not None:
        return f"{value:.3f}"
    if one.n < FEWEST:
        return says["hidden"].format(n=one.n, fewest=FEWEST)
    return says["undefined"]


def _percent(share: float | None, says: Words) -> str:
    return says["none"] if share is None else f"{share:.1%}"


def _seconds(seconds: float | None, says: Words) -> str:
    return says["none"] if seconds is None else says["seconds"].format(n=f"{seconds:.1f}")


def _nothing(says: Words) -> str:
    return f'<p class="quiet">{escape(says["nothing"])}</p>'
