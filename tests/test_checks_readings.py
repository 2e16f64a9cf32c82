"""Constraints as strangers put them: stated, negated, bounded, meant for a part, or only mentioned.

What a phrasing does not certainly say is left unrecognised: `-` in the table.
"""

import re
from pathlib import Path

import pytest

from alpaca_rlhf.checks import (
    KINDS,
    Constraint,
    cores,
    demonstrations,
    read_request,
    write_template,
)
from alpaca_rlhf.checks.text import Answer

TABLE = """
# exactly so many
Explain photosynthesis in exactly 3 sentences. => sentences_exactly 3
Explain photosynthesis in three sentences. => sentences_exactly 3
Explain photosynthesis in three short sentences. => sentences_exactly 3
What is photosynthesis, in 2 sentences? => sentences_exactly 2
What is photosynthesis in 2 sentences? => sentences_exactly 2
Can you explain gravity in four sentences? => sentences_exactly 4
Summarise the French Revolution in one sentence. => sentences_exactly 1
In 4 sentences, describe a sunset. => sentences_exactly 4
Write five sentences about dogs. => sentences_exactly 5
Write a summary of 3 sentences. => sentences_exactly 3
Explain how to bake bread in 3 sentences. => sentences_exactly 3
Explain why it rains and answer in exactly 3 sentences. => sentences_exactly 3
Write an essay in 3 paragraphs. => paragraphs 3
Write 3 paragraphs on tea. => paragraphs 3
List 3 bullet points on tea. => bullets 3
Give me five bullets about tea. => bullets 5
Tell me about tea in 3 bullet points. => bullets 3
Give me 1,000 bullet points. => bullets 1000
Give me twenty-five bullets on tea. => bullets 25
Explain how tea is made in 4 numbered steps. => numbered 4
# at most
Explain gravity in 3 sentences or less. => sentences_at_most 3
Explain gravity in 3 sentences or fewer. => sentences_at_most 3
Explain gravity in no more than 3 sentences. => sentences_at_most 3
Explain gravity in not more than 3 sentences. => sentences_at_most 3
Explain gravity in at most three sentences, please. => sentences_at_most 3
Explain gravity in 3 sentences max. => sentences_at_most 3
Explain gravity in 3 sentences at most. => sentences_at_most 3
Explain gravity using up to 3 sentences. => sentences_at_most 3
Limit your answer to 3 sentences. => sentences_at_most 3
Do not exceed 3 sentences. => sentences_at_most 3
Don't write more than 3 sentences. => sentences_at_most 3
Your answer should be no longer than 3 sentences. => sentences_at_most 3
Your answer should not exceed 3 sentences. => sentences_at_most 3
How does a fridge work? No more than 2 sentences. => sentences_at_most 2
Explain gravity in 50 words or less. => words_at_most 50
Explain gravity in fifty words or fewer. => words_at_most 50
Explain gravity in under 1,000 words. => words_at_most 999
Keep your answer below 50 words. => words_at_most 49
Stay under 50 words. => words_at_most 49
Explain gravity in fewer than three sentences. => sentences_at_most 2
Keep it under 3 sentences. => sentences_at_most 2
请用不到50个字解释重力。 => words_at_most 49
Use at most 1,000 words. => words_at_most 1000
Use at most 12,500 words. => words_at_most 12500
Use at most one hundred words. => words_at_most 100
Use at most a hundred and twenty words. => words_at_most 120
Use at most 30 words in your answer. => words_at_most 30
Use at most 30 words in total. => words_at_most 30
Explain it to a child and use at most 30 words. => words_at_most 30
When you answer, use at most 30 words. => words_at_most 30
If possible, use at most 30 words. => words_at_most 30
# at least
Explain gravity in 3 or more sentences. => sentences_at_least 3
Explain gravity in at least 3 sentences. => sentences_at_least 3
Explain gravity in 3 sentences or more. => sentences_at_least 3
Write a minimum of 5 sentences about gravity. => sentences_at_least 5
Explain gravity in more than 3 sentences. => sentences_at_least 4
Write over 100 words about tea. => words_at_least 101
Write more than a hundred words. => words_at_least 101
Use no less than 4 sentences. => sentences_at_least 4
Write at least 1,500 words on gravity. => words_at_least 1500
Write at least twenty-five words. => words_at_least 25
# between
Write between 40 and 60 words. => words_between 40 60
Explain gravity in 40 to 60 words. => words_between 40 60
Explain gravity in 40-60 words. => words_between 40 60
Write between 60 and 40 words. => -
Explain gravity in 2 to 4 sentences. => -
Explain gravity in 2-4 sentences. => -
Use between 2 and 4 sentences. => -
Give me 3 to 5 bullet points. => -
Use between 2 and 4 bullets. => -
# bounds that no kind has
Explain gravity in 3 sentences or so. => -
Explain gravity in about 3 sentences. => -
Explain gravity in roughly 100 words. => -
Explain gravity in 3 sentences, give or take. => -
Explain gravity in 3 sentences, no more. => -
Explain gravity in 3 sentences (no fewer). => -
Explain gravity in 3 sentences or 50 words. => -
Explain gravity in 50 words. => -
Use at most 30 words or three sentences. => -
Tell me about tea in 3 bullet points or fewer. => -
Give me at most 5 bullets. => -
Write at least 3 paragraphs. => -
Write exactly 0 lines. => -
Give me 0 bullet points. => -
Answer with exactly zero numbered points. => -
Use at least 5 sentences, but no more than 8. => -
Keep it under 1 sentence. => -
# of a part of the answer
Start every sentence with "Well". => -
Use exactly one exclamation mark per paragraph. => -
Write 3 paragraphs of 4 sentences each. => paragraphs 3
Each paragraph should have at least 3 sentences. => -
Use at most 30 words for each item. => -
Use at most 30 words in the summary. => -
Use at most 10 words per sentence. => longest_sentence 10
Do not use any commas in the title. => -
Write the title in capital letters. => -
Put the last word in capital letters. => -
Write everything in lower case, except for names. => -
# on a condition
If you are unsure, end with a question. => -
End with a question if you like. => -
Use at most 30 words unless you need more. => -
# negated
Do not end with a question. => -
Never end with a question. => -
Don’t end your answer with a question. => -
You must not end with a question. => -
Do not, under any circumstances, end with a question. => -
Please avoid ending with a question. => -
End with a question. => ends_with_question
Please end your reply with a question mark. => ends_with_question
Explain rain and end with a question. => ends_with_question
Your answer should end with a question. => ends_with_question
Don't write in capital letters. => -
Never answer in all caps. => -
Do not write everything in lower case. => -
Please do not put your whole answer in double quotation marks. => -
Do not begin your answer with "Well". => -
Begin your answer with "Well". => begins_with Well
Start with "Dear Sir". => begins_with Dear Sir
Never begin with the letter "A". => -
Do not answer in exactly 3 sentences. => -
I do not want you to use at most 30 words. => -
I want you to use at most 30 words. => words_at_most 30
There is no need to avoid commas altogether. => -
You do not have to use the word "rain". => -
Don't include a semicolon. => -
Include a semicolon, please. => semicolon
# words to use and to leave out
Use the word "rain". => contains_words rain
You must include the words "rain" and "sun". => contains_words rain|sun
Make sure to use the word "rain". => contains_words rain
Never use the word "very". => leaves_out very
Don't use the word "very". => leaves_out very
Don’t use the words “very” or “really”. => leaves_out very|really
Do not mention "Paris". => leaves_out Paris
You must not include the word "rain". => leaves_out rain
Your answer must not contain the word "rain". => leaves_out rain
Avoid using the word "very". => leaves_out very
Explain rain without using the word "water". => leaves_out water
Do not use the word "very" more than twice. => -
Do not use the word "very" in the title. => -
Use the word "rain" twice. => -
Use the word "rain" 3 times. => word_exactly rain 3
Use the word "rain" 3 times or more. => word_at_least rain 3
Use the word "rain" at most 3 times. => -
Write a story without the letter e. => letter_absent e
# letters and marks
Write in capital letters. => upper_case
Answer in all caps, please. => upper_case
Explain rain in lowercase. => lower_case
Write a poem about rain in all lowercase letters. => lower_case
Your answer should be in lowercase letters. => lower_case
Explain rain in lowercase and without commas. => lower_case; no_commas
Do not use capital letters. => lower_case
Explain rain, no capital letters please. => lower_case
Explain rain without commas. => no_commas
Don't use commas. => no_commas
Never use any commas or digits. => no_commas; no_digits
Never use commas, digits or exclamation marks. => no_commas; no_digits; no_exclamation
Explain rain without commas and digits. => no_commas; no_digits
Never use commas or semicolons. => no_commas
Never use commas or digits to part the items. => no_commas
Never use commas, digits are fine. => no_commas
Explain rain with no commas. => no_commas
Avoid commas and exclamation marks. => no_commas; no_exclamation
Your reply must not contain any exclamation marks. => no_exclamation
Don't use any digits. => no_digits
Use commas. => -
# bans as people put them
Never use the word very. => leaves_out very
Don't mention the word rain, please. => leaves_out rain
Never use the word very in your answer. => leaves_out very
Never use the word rain and end with a question. => leaves_out rain; ends_with_question
Describe the sea without using the word blue. => leaves_out blue
Don't ever use the word "delve". => leaves_out delve
Make sure not to use the word "nice". => leaves_out nice
I want you to never use the word "delve". => leaves_out delve
The word "sun" must not appear. => leaves_out sun
The word "sun" is forbidden. => leaves_out sun
Never use commas or digits. => no_commas; no_digits
Please refrain from using commas or digits. => no_commas; no_digits
Use neither commas nor digits. => no_commas; no_digits
Be sure not to use any commas. => no_commas
Commas are not allowed. => no_commas
Don't use the letter e. => letter_absent e
Don't use fewer than 3 sentences. => sentences_at_least 3
Never write less than 50 words. => words_at_least 50
Explain gravity in 3 or fewer sentences. => sentences_at_most 3
Keep it to 3 sentences or less. => sentences_at_most 3
Keep your answer to 50 words or less. => words_at_most 50
Use the word rain. => contains_words rain
Don't forget to use the word "sun". => contains_words sun
Never forget to end with a question. => ends_with_question
Make sure you don't end with a question. => -
Never start with "Sure". => -
Don't leave out the word "sun". => -
Don't use the word again. => -
Never use the word rain or sun. => -
Never use the word very in the title. => -
Never use commas between two adjectives. => -
You should never use commas before "that". Why? => -
He said never use the word rain. => -
Why should I never use the word very? => -
Explain why digits are forbidden in names. => -
The word "sun" should not appear more than twice. => -
# only mentioned
Explain what lower case is. => -
Explain what "in lower case" means. => -
What does it mean to write in lower case? => -
Why do people write in all caps? => -
Explain why some poets write in lower case. => -
Why do columnists end with a question? => -
Should I end with a question in a sales email? => -
Do good essays start with a joke and end with a question? => -
Describe teachers who tell jokes and end with a question. => -
Why were there no commas in Latin inscriptions? => -
Translate "Do not use any commas." into French. => -
Translate “End with a question.” into French. => -
Translate 'End with a question.' into French. => -
Explain how to use the words "affect" and "effect". => -
Is it wrong to use the word "ain't"? => -
Fix the grammar: He never use the word "rain". => -
The rule "no commas" is silly. => -
Summarise this in 3 sentences: "Do not use any commas." => sentences_exactly 3
How do I write an essay in 3 paragraphs? => -
Explain how people say it in 3 sentences. => -
How many ideas fit in 3 sentences? => -
# Chinese
请用三句话回答。 => sentences_exactly 3
请用3句话以内回答。 => sentences_at_most 3
最多用三句话回答。 => sentences_at_most 3
回答最多三句话。 => sentences_at_most 3
请至少用3句话回答。 => sentences_at_least 3
请用两到三句话回答。 => -
请用十三句话以内回答。 => -
不要用三句话回答。 => -
不要用逗号。 => no_commas
下雨是怎么回事？请以一个问题结尾。 => ends_with_question
不要以一个问题结尾。 => -
"""
GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "checks.md").read_text()
ROWS = [
    tuple(part.strip() for part in line.split("=>"))
    for line in TABLE.strip().splitlines()
    if not line.startswith("#")
]


def reading(text):
    """The constraints of a text, in the form of the table."""
    constraints = read_request(text).constraints
    return "; ".join(
        " ".join([check.kind.name, *check.arguments.values()]) for check in constraints
    )


@pytest.mark.parametrize(("text", "expected"), ROWS)
def test_a_phrasing_says_what_it_says_or_nothing(text, expected):
    assert (reading(text) or "-") == expected


@pytest.mark.parametrize("in_words", [False, True])
def test_a_bound_that_is_not_allowed_is_written_as_it_is_read(in_words):
    text = write_template("Keep it under {below} words.", {"n": "9"}, in_words=in_words)
    assert text == f"Keep it under {'ten' if in_words else '10'} words."
    assert reading(text) == "words_at_most 9"


def test_the_table_is_large():
    texts = [text for text, _ in ROWS]
    assert len(set(texts)) == len(texts) >= 80
    assert sum(expected == "-" for _, expected in ROWS) >= 40


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_count_of_0_breaks_no_checker(kind):
    arguments = {"n": "0", "m": "0", "letter": "a", "word": "a", "words": "a", "phrase": "a"}
    for text in ("A garden pond.", "1. A garden pond.\nPart 1", "!"):
        assert 0 <= Constraint(kind, arguments).degree(Answer(text)) <= 1


def test_the_guide_lists_the_catalogue():
    held_out = re.search(r"Eight kinds occur in no training split: (.*?)\. Nor", GUIDE, re.DOTALL)[
        1
    ]
    names = re.findall(r"`(\w+)`", held_out)
    assert names == [kind.name for kind in KINDS.values() if kind.held_out] and len(names) == 8
    # What a base meets untrained: each kind stands in one of the three lists.
    lists = re.findall(
        r"^- (?:Mostly met|Sometimes|Never in these samples): (.*?)\.$", GUIDE, re.M | re.S
    )
    met = [name for names in lists for name in re.findall(r"`(\w+)`", names)]
    assert len(lists) == 3 and sorted(met) == sorted(KINDS)
    numbers = {
        "English instructions": sum(core.language == "en" for core in cores()),
        "Chinese ones": sum(core.language == "zh" for core in cores()),
        "kinds of constraint": len(KINDS),
        "answers by hand": len(demonstrations(("en", "zh"))),
        "English, 6 Chinese": len(demonstrations()),
    }
    for words, number in numbers.items():
        assert re.search(rf"(?<![\d,]){number:,} (?:\([^)]*\) )?{words}", GUIDE), (words, number)
