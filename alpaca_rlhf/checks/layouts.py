"""Kinds of constraint on layout: bullets, numbered steps, JSON, titles, sections, two answers."""

from __future__ import annotations

import json
import random
import re

from alpaca_rlhf.checks.degrees import exactly, most
from alpaca_rlhf.checks.kinds import MOST, Arguments, Demands, Kind, Language, count_of, draw_count
from alpaca_rlhf.checks.text import Answer, bare, words_of

_TITLE = re.compile(r"<<[^<>\n]*\w[^<>\n]*>>")
_FENCE = re.compile(r"```[A-Za-z]*\s*\n(.*?)\n?```", re.DOTALL)
_BREAK = re.compile(r"^[ \t]*(?:\*[ \t]*){3,}$", re.MULTILINE)
_PART = re.compile(r"^\W*(?:part\s+(\d{1,3})\b|第(\d{1,3})部分)", re.IGNORECASE | re.MULTILINE)
_POSTSCRIPT = re.compile(r"^\W*(?:p\.\s?s\.?|ps:|附言)[\s:：,]*(?=\S)", re.IGNORECASE)
_OPENING, _CLOSING = '"“「『', '"”」』'
_MIN_PART_WORDS = 4  # of each of two answers, and of a remark after the end

_NOT_LISTS = frozenset({"poem", "story", "message"})
_NOT_SHAPED = frozenset({"poem"})


def _keys(rng: random.Random, language: Language) -> dict[str, str]:
    sets = (
        "title|summary",
        "answer|reason",
        "topic|advice",
        "main_point|example",
        "idea|details|warning",
    )
    return {"words": rng.choice(sets)}


def _quoted(answer: Answer, arguments: Arguments) -> float:
    text = answer.text
    return (text[0] in _OPENING) / 2 + (len(text) > 1 and text[-1] in _CLOSING) / 2


def _numbered(answer: Answer, arguments: Arguments) -> float:
    wanted = list(range(1, count_of(arguments) + 1))
    in_order = sum(a == b for a, b in zip(answer.numbers, wanted, strict=False))
    return most(in_order, max(len(answer.numbers), len(wanted)))


def _json(answer: Answer, arguments: Arguments) -> float:
    keys = arguments["words"].split("|")
    fenced = _FENCE.fullmatch(answer.text)
    text = fenced[1] if fenced else answer.text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        named = sum(f'"{key}"' in text for key in keys)
        return 0.3 * most(named, len(keys)) if "{" in text else 0.0
    if not isinstance(value, dict):
        return 0.2
    filled = sum(bool(value.get(key)) for key in keys)
    return filled / max(len(keys), len(value))


def _title(answer: Answer, arguments: Arguments) -> float:
    titles = _TITLE.findall(answer.text)
    if len(titles) != 1:
        return 0.4 if titles else 0.0
    return 1.0 if _TITLE.search(answer.lines[0]) else 0.6


def _sections(answer: Answer, arguments: Arguments) -> float:
    wanted = list(range(1, count_of(arguments) + 1))
    numbers = [int(latin or chinese) for latin, chinese in _PART.findall(answer.text)]
    in_order = sum(a == b for a, b in zip(numbers, wanted, strict=False))
    return most(in_order, max(len(numbers), len(wanted)))


def _repeated(answer: Answer, arguments: Arguments) -> float:
    wanted, words = bare(answer.question).split(), bare(answer.text).split()
    if not wanted:
        return 0.0
    same = 0
    for ours, theirs in zip(wanted, words, strict=False):
        if ours != theirs:
            break
        same += 1
    share = same / len(wanted)
    # The request alone is no answer.
    return share if len(words) >= len(wanted) + _MIN_PART_WORDS else share / 2


def _two_answers(answer: Answer, arguments: Arguments) -> float:
    parts = [part.strip() for part in _BREAK.split(answer.text)]
    if len(parts) != 2:
        return 0.3 if len(parts) > 2 else 0.0
    if any(len(words_of(part)) < _MIN_PART_WORDS for part in parts):
        return 0.3
    return 1.0 if bare(parts[0]) != bare(parts[1]) else 0.3


def _postscript(answer: Answer, arguments: Arguments) -> float:
    last = _POSTSCRIPT.match(answer.lines[-1])
    if last and len(answer.lines) > 1:
        return 1.0 if len(words_of(answer.lines[-1][last.end() :])) >= 2 else 0.5
    return 0.5 if any(_POSTSCRIPT.match(line) for line in answer.lines) else 0.0


LAYOUTS = (
    Kind(
        "double_quotes",
        "the whole answer in double quotation marks",
        (
            "Put your whole answer in double quotation marks.",
            "Wrap the entire answer in double quotes.",
            "Begin and end your answer with a double quotation mark.",
            "Enclose everything you write in double quotes.",
            "The full reply should stand between double quotation marks.",
        ),
        _quoted,
        chinese=(
            "请把整个回答放在双引号里。",
            "回答全文要用双引号括起来。",
            "整段文字的首尾都要有双引号。",
        ),
        demands=lambda a: Demands(roles=frozenset({"start", "end"})),
        except_genres=_NOT_SHAPED,
    ),
    Kind(
        "bullets",
        "N bullet points",
        (
            "Answer with exactly {n} bullet points.",
            "Give your answer as {n} bullet points.",
            "Use {n} bullet points, each beginning with a dash.",
            "Your answer should contain {n} bullet points.",
            "Lay the answer out as a list of {n} bullets.",
        ),
        lambda answer, a: exactly(len(answer.bullets), count_of(a)),
        chinese=(
            "请用{n}个要点回答，每个要点以短横线开头。",
            "回答要有{n}个以“-”开头的要点。",
            "列出{n}条以短横线开头的要点。",
        ),
        also=(
            "(give|give me|list|write|use|provide) (exactly |){n} (short |)(bullet points|bullets)",
        ),
        manner=("(in|with|as|using) (exactly |){n} (short |)(bullet points|bullets)",),
        draw=draw_count(2, 5),
        demands=lambda a: Demands(
            words=(4 * count_of(a), MOST), roles=frozenset({"layout", "sentences"})
        ),
        except_genres=_NOT_LISTS,
    ),
    Kind(
        "numbered",
        "N numbered points",
        (
            "Answer with exactly {n} numbered points.",
            "Number your points from 1 to {n}.",
            "Give your answer as a numbered list of {n} points.",
            "Use a numbered list with {n} entries.",
            "Lay the answer out in {n} steps with a number before each.",
        ),
        _numbered,
        chinese=(
            "请用{n}个编号要点回答。",
            "回答要有从1到{n}的编号。",
            "列成{n}条带数字编号的内容。",
        ),
        manner=(
            "(in|with|as|using) (exactly |){n} numbered (steps|points|items)",
            "(in|with|as|using) a numbered list of (exactly |){n} (steps|points|items|entries)",
        ),
        draw=draw_count(2, 5),
        demands=lambda a: Demands(
            words=(5 * count_of(a), MOST), roles=frozenset({"layout", "sentences"}), required=("1",)
        ),
        except_genres=_NOT_LISTS,
    ),
    Kind(
        "json",
        "a JSON object with given keys",
        (
            "Give your answer as a JSON object with the keys {words}.",
            "Answer in JSON with the keys {words}.",
            "Reply with nothing but a JSON object that has the keys {words}.",
            "Write the answer as JSON, using the keys {words}.",
            "The reply must be valid JSON and hold the keys {words}.",
        ),
        _json,
        chinese=(
            "请用JSON格式回答，键为{words}。",
            "回答必须是一个JSON对象，包含键{words}。",
            "只输出一个JSON对象，其键是{words}。",
        ),
        draw=_keys,
        demands=lambda a: Demands(
            words=(12, MOST),
            roles=frozenset({"layout", "sentences", "start", "end", "case"}),
            required=(",", '"'),
        ),
        except_genres=_NOT_LISTS,
        weight=0.6,
    ),
    Kind(
        "title",
        "a title in <<double angle brackets>>",
        (
            "Put a title in double angle brackets above your answer, such as <<My Title>>.",
            "Begin with a title in double angle brackets, like <<Title>>.",
            "Give your answer a title and write it as <<title>>.",
            "Add a heading in double angle brackets at the top, for example <<Heading>>.",
            "Let a title between << and >> stand at the head of the text.",
        ),
        _title,
        chinese=(
            "请在开头加一个标题，写成<<标题>>的形式。",
            "回答要有一个放在<<和>>之间的标题。",
            "最上面写一个标题，并用<<>>括起来。",
        ),
        demands=lambda a: Demands(
            words=(10, MOST), roles=frozenset({"start"}), required=("<<", ">>")
        ),
    ),
    Kind(
        "sections",
        "N parts headed Part 1, Part 2 ...",
        (
            "Divide your answer into {n} parts headed Part 1, Part 2 and so on.",
            "Write {n} sections and head them Part 1, Part 2 and so forth.",
            "Structure the answer in {n} parts, each with a heading such as Part 1.",
            "Split the text into {n} parts and mark each with a line like Part 1.",
            "Let the answer fall into {n} parts with the headings Part 1, Part 2 and onward.",
        ),
        _sections,
        chinese=(
            "请把回答分成{n}部分，分别以“第1部分”等为标题。",
            "回答要有{n}个部分，标题写作“第1部分”“第2部分”。",
            "全文分为{n}部分，每部分开头写“第1部分”这样的标题。",
        ),
        draw=draw_count(2, 3),
        demands=lambda a: Demands(
            words=(10 * count_of(a), MOST),
            roles=frozenset({"layout", "sentences", "start"}),
            required=("Part 1",),
        ),
        except_genres=_NOT_LISTS,
    ),
    Kind(
        "repeat_request",
        "the request word for word, then the answer",
        (
            "First repeat this request word for word, then answer it.",
            "Before you answer, copy the request above without any change.",
            "Repeat my request exactly as it is and give your answer after it.",
            "Start by restating the request in the same words, then answer.",
            "Open with my own words, copied exactly, and only then reply.",
        ),
        _repeated,
        chinese=(
            "请先一字不差地重复这个请求，再作回答。",
            "回答之前，请先原样复述上面的请求。",
            "开头照抄我的请求，然后再回答。",
        ),
        demands=lambda a: Demands(
            words=(25, MOST), roles=frozenset({"start", "sentences"}), repeats_question=True
        ),
        except_genres=_NOT_SHAPED,
    ),
    Kind(
        "two_answers",
        "two answers with a line of ****** between them",
        (
            "Give two different answers with a line of ****** between them.",
            "Write two versions of your answer and separate them by a line of ******.",
            "I want two different replies, parted by a line that holds only ******.",
            "Offer two answers and put ****** on a line of its own between them.",
            "Answer twice, in different words, with ****** alone on the line in between.",
        ),
        _two_answers,
        chinese=(
            "请给出两个不同的回答，中间用一行******隔开。",
            "写两个版本，并用单独一行******分开。",
            "回答两次，两次内容不同，之间单独一行写******。",
        ),
        demands=lambda a: Demands(
            words=(16, MOST),
            sentences=(2, MOST),
            roles=frozenset({"layout", "sentences"}),
            required=("******",),
        ),
    ),
    Kind(
        "postscript",
        "a postscript at the end",
        (
            "End with a postscript that begins with P.S.",
            "Add a postscript starting with P.S. on the last line.",
            "After your answer, add a P.S. with one more remark.",
            "Finish with a line that starts with P.S.",
            "Let a P.S. on a line of its own close the text.",
        ),
        _postscript,
        chinese=(
            "请在最后加一行以“附言”开头的附言。",
            "结尾另起一行，以“附言”开头补充一句。",
            "全文末尾要有一行以“附言”二字开头的话。",
        ),
        demands=lambda a: Demands(
            words=(12, MOST),
            sentences=(2, MOST),
            roles=frozenset({"end"}),
            required=("P.S.",),
            caseless=False,
        ),
        except_genres=_NOT_SHAPED,
    ),
)
"""The kinds of this module."""
