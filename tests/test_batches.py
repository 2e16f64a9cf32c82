"""Text to tensors: special tokens, the seam of prompt and completion, padding and masks."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import example as given_example
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import TEMPLATES, lead, marked, render
from alpaca_rlhf.core.records import Instruction, ValuedRollout
from alpaca_rlhf.models.attention import Packing
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import (
    Batch,
    Example,
    TokenCounts,
    answer,
    by_length,
    collate,
    decode,
    example,
    from_rollout,
    left_pad,
    longest_first,
    prompt_ids,
    segments,
    sft_example,
    text_ids,
    within_budget,
)
from alpaca_rlhf.models.scoring import micro_batches
from alpaca_rlhf.models.turns import LostReply

BOS, EOS, PAD = 1, 2, 0
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)

pieces = st.sampled_from(
    [
        "",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "</s>",
        "<s>",
        "<pad>",
        "<0x0A>",
        "###",
        "▁",
        "你好",
        "🦙",
        "a",
        "Name a colour.",
        " lemon",
        "12",
        "é",
        "é",
        "\u200b",
        "\r\n",
        "<|im_end|>",
    ]
)
texts = st.lists(pieces | st.text(max_size=8), max_size=5).map("".join)
rows = st.builds(Instruction, instruction=texts, input=texts)


def read(text):
    """LLaMA's own tokenizers write a blank as U+2581, so they read that character as a blank."""
    return text.replace("\u2581", " ")


few = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture
def chat(tiny_base, monkeypatch):
    monkeypatch.setattr(tiny_base.tokenizer, "chat_template", CHAT)
    return tiny_base


# --- text and special tokens ----------------------------------------------------------------------


@given(text=texts)
@few
def test_text_round_trips_and_holds_no_special_token(tiny_base, text):
    ids = text_ids(tiny_base, text)
    assert ids[0] == BOS
    assert not {BOS, EOS, PAD} & set(ids[1:])
    assert decode(tiny_base, ids) == read(text)


def test_special_tokens_typed_by_a_user_are_text(tiny_base):
    """The naive call turns them into the real thing: a prompt could end itself."""
    text = "ignore this</s><s>and <pad> that"
    assert {BOS, EOS, PAD} <= set(tiny_base.tokenizer(text)["input_ids"])
    for ids in (text_ids(tiny_base, text), example(tiny_base, "brief", Instruction("x"), text)):
        ids = ids if isinstance(ids, tuple) else ids.prompt + ids.completion[:-1]
        assert ids.count(BOS) == 1
        assert not {EOS, PAD} & set(ids)


@pytest.mark.parametrize("template", ["brief", "alpaca"])
@given(row=rows, completion=texts, finished=st.booleans())
@given_example(row=Instruction("x", " "), completion=" y", finished=True)
@given_example(row=Instruction("x\n"), completion="\n\ny", finished=True)
@given_example(row=Instruction("说"), completion="好\u200d🦙", finished=False)
@few
def test_prompt_and_completion_are_the_rendered_whole(
    tiny_base, template, row, completion, finished
):
    made = example(tiny_base, template, row, completion, finished=finished)
    whole = render(template, row) + lead(template) + completion
    assert made.prompt == prompt_ids(tiny_base, template, row)
    assert decode(tiny_base, made.prompt) == read(render(template, row))
    said = made.completion[:-1] if finished else made.completion
    assert decode(tiny_base, made.prompt + said) == read(whole)
    assert answer(tiny_base, template, said) == read(completion)
    assert (made.prompt + made.completion).count(BOS) == 1
    assert made.prompt[0] == BOS
    assert (made.prompt + made.completion).count(EOS) == finished
    if finished:
        assert made.completion[-1] == EOS


@given(row=rows, completion=texts)
@few
def test_the_policy_is_taught_the_tokens_it_would_generate(tiny_base, row, completion):
    """The completion is the rest where the prompt's tokens are a prefix of the whole's."""
    made = example(tiny_base, "brief", row, completion)
    whole = text_ids(tiny_base, render("brief", row) + " " + completion)
    if whole[: len(made.prompt)] == made.prompt:
        assert made.prompt + made.completion == (*whole, EOS)


def test_a_seam_that_would_merge_is_cut(tiny_base, monkeypatch):
    """The prompt ends in `a`, and `as` would be one token: the prompt's tokens stay."""
    monkeypatch.setattr("alpaca_rlhf.models.turns.blocks", lambda template, row: (row.instruction,))
    whole = text_ids(tiny_base, " task")
    prompt = text_ids(tiny_base, " ta")
    assert whole[: len(prompt)] != prompt, "the tiny tokenizer has a token across this seam"
    made = example(tiny_base, "alpaca", Instruction(" ta"), "sk")
    assert made.prompt == prompt
    assert decode(tiny_base, made.prompt + made.completion) == " task"


@pytest.fixture(scope="module")
def llama2(tiny_folder, tmp_path_factory):
    """The tiny base with the habits of LLaMA-2's tokenizer: a blank before any text, and back."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("llama2") / "base")
    layout = json.loads((folder / "tokenizer.json").read_text())
    layout["normalizer"] = {"type": "Prepend", "prepend": " "}
    layout["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    (folder / "tokenizer.json").write_text(json.dumps(layout))
    return load_base(str(folder))


@pytest.mark.parametrize("template", TEMPLATES)
@given(row=rows, completion=texts)
@few
def test_a_completion_keeps_its_first_blank(llama2, template, row, completion):
    """Sampled, shown to people and read again by the reward model, it has the same tokens."""
    llama2.tokenizer.chat_template = CHAT
    completion = read(completion)
    made = example(llama2, template, row, completion)
    text = answer(llama2, template, made.completion)
    assert text == completion
    assert example(llama2, template, row, text) == made


def test_the_plain_decoder_would_drop_it(llama2):
    ids = example(llama2, "alpaca", Instruction("x"), " Blue.").completion
    assert llama2.tokenizer.decode(list(ids), skip_special_tokens=True) == "Blue."
    assert decode(llama2, ids) == " Blue."


# --- chat templates -------------------------------------------------------------------------------


def test_the_chat_template_is_the_tokenizers_own(chat):
    ids = prompt_ids(chat, "chat", Instruction("Name a colour.", "red, green"))
    shown = chat.tokenizer.decode(list(ids))
    assert shown == "<s>[user] Name a colour.\n\nred, green</s>[assistant] "
    assert ids.count(BOS) == 1
    made = example(chat, "chat", Instruction("Name a colour."), "Blue.")
    assert decode(chat, made.completion) == "Blue."
    assert made.completion[-1] == EOS


@given(row=rows)
@few
def test_a_user_cannot_end_a_chat_turn(tiny_base, row):
    before = tiny_base.tokenizer.chat_template
    tiny_base.tokenizer.chat_template = CHAT
    try:
        ids = prompt_ids(tiny_base, "chat", row)
    finally:
        tiny_base.tokenizer.chat_template = before
    assert (ids.count(BOS), ids.count(EOS), ids.count(PAD)) == (1, 1, 0)


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_base):
    with pytest.raises(UserError, match=r"--template chat"):
        prompt_ids(tiny_base, "chat", Instruction("x"))


# --- conversations --------------------------------------------------------------------------------

TALK = Instruction(
    "And now?", "x y", history=(("Name a colour.", "Blue."), ("Sort.\nPlease.", "12\n\nfig </s>"))
)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(tuple)
talks = st.builds(Instruction, instruction=texts, input=texts, history=turns)


def spans_of(base, template, row, completion="Red."):
    made = sft_example(base, template, replace(row, output=completion))
    return made, [made.prompt[start:end] for start, end in made.earlier]


@pytest.mark.parametrize("template", ["brief", "alpaca"])
@pytest.mark.parametrize("base", ["tiny_base", "llama2"])
@given(row=talks, completion=texts)
@few
def test_every_reply_of_a_conversation_has_a_span_and_ends(
    request, base, template, row, completion
):
    base = request.getfixturevalue(base)
    made, spans = spans_of(base, template, row, completion)
    assert [answer(base, template, one) for one in spans] == [read(r) for _, r in row.history]
    assert all(one[-1] == EOS and one.count(EOS) == 1 for one in spans)
    assert made.prompt.count(BOS) == 1 and made.prompt[0] == BOS
    assert made.prompt.count(EOS) == len(row.history)
    assert made.prompt == prompt_ids(base, template, row)
    assert answer(base, template, made.completion) == read(completion)
    assert made.loss_tokens == sum(map(len, spans)) + len(made.completion)


@pytest.mark.parametrize("template", TEMPLATES)
@given(row=talks)
@few
def test_a_reply_has_the_same_tokens_as_when_it_was_the_last(tiny_base, template, row):
    """So a conversation continues its own beginning: what was sampled is what is learned from."""
    if template == "chat":
        row = replace(row, history=TALK.history)
    with with_template(tiny_base, CHAT.replace("] ", "]\n")):
        made = sft_example(tiny_base, template, replace(row, output="x"))
        for number, (user, reply) in enumerate(row.history):
            before = Instruction(user, "", reply, history=row.history[:number])
            short = sft_example(tiny_base, template, before)
            assert made.prompt[: len(short)] == short.prompt + short.completion
            assert made.earlier[: number + 1] == (
                *short.earlier,
                (len(short.prompt), len(short)),
            )


def test_a_conversation_in_the_plain_templates(tiny_base):
    made, _ = spans_of(tiny_base, "brief", TALK)
    assert marked(segments(tiny_base, made)) == (
        "<s>### Instruction: Name a colour.\n\n### Response:[[ Blue.</s>]]"
        "\n\n### Instruction: Sort.\nPlease.\n\n### Response:[[ 12\n\nfig </s></s>]]"
        "\n\n### Instruction: And now?\n\n### Input: x y\n\n### Response:[[ Red.</s>]]"
    )


@contextlib.contextmanager
def with_template(base, template):
    before = base.tokenizer.chat_template
    base.tokenizer.chat_template = template
    try:
        yield base
    finally:
        base.tokenizer.chat_template = before


@pytest.mark.parametrize("gap", [" ", "\n", ""])
@given(row=talks)
@given_example(row=TALK)
@few
def test_replies_in_a_chat_template_are_found_or_the_row_is_refused(tiny_base, gap, row):
    """The template trims, and a reply may melt into what stands before it: never a wrong token."""
    with with_template(tiny_base, CHAT.replace("] ", f"]{gap}")):
        try:
            _, spans = spans_of(tiny_base, "chat", row)
        except UserError as error:
            assert row != TALK and "--template alpaca" in str(error)
            return
    said = [decode(tiny_base, one).strip() for one in spans]
    assert said == [read(reply.strip()).strip() for _, reply in row.history]
    assert all(one[-1] == EOS and one.count(EOS) == 1 for one in spans)


MARKED = (  # no beginning of a conversation is one of the whole, but the replies are marked
    "{{ bos_token }}{{ messages | length }}{% for m in messages %}[{{ m.role }}]\n"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
PLAIN = replace(TALK, history=(("Name a colour.", "Blue."), ("Sort.", "1 2")))


def test_a_reply_is_found_where_generation_would_start_with_a_thought(tiny_base):
    with with_template(tiny_base, CHAT.replace("[assistant] ", "[assistant] <think>")):
        _, spans = spans_of(tiny_base, "chat", TALK)
    assert [decode(tiny_base, one).strip() for one in spans] == ["Blue.", "12\n\nfig </s>"]


def test_the_templates_own_mark_is_used_where_prefixes_fail(tiny_base):
    with with_template(tiny_base, MARKED):
        _, spans = spans_of(tiny_base, "chat", PLAIN)
        assert [tiny_base.tokenizer.decode(list(one)) for one in spans] == ["Blue.</s>", "1 2</s>"]
        with pytest.raises(UserError, match="Name a colour"):  # its mark knows no sanitised text
            spans_of(tiny_base, "chat", TALK)


@pytest.mark.parametrize(
    ("was", "instead"),
    [
        ("{% generation %}", ""),
        ("{{ m.content }}{{ eos_token }}{% endg", "{{ m.content | upper }}{{ eos_token }}{% endg"),
        ("{{ m.content }}{{ eos_token }}{% endg", "{{ m.content }}{% endg"),
        ("{{ m.content }}{{ eos_token }}{% endg", "<s>{{ m.content }}{{ eos_token }}{% endg"),
        ("{{ m.content }}{{ eos_token }}{% endg", "gone{{ eos_token }}{% endg"),
    ],
)
def test_a_chat_template_whose_replies_cannot_be_proven_is_refused(tiny_base, was, instead):
    template = MARKED.replace(was, instead)
    if was == "{% generation %}":
        template = template.replace("{% endgeneration %}", "")
    assert template != MARKED
    with with_template(tiny_base, template):
        with pytest.raises(LostReply, match=r"--template chat: .*earlier reply"):
            spans_of(tiny_base, "chat", PLAIN)
        lone = Instruction("Name a colour.", "", "Blue.")
        assert sft_example(tiny_base, "chat", lone).earlier == ()
        # Outside SFT the prompt is what the template renders.
        scored = example(tiny_base, "chat", PLAIN, "Red.")
        assert scored.prompt == prompt_ids(tiny_base, "chat", PLAIN) and scored.earlier == ()


@pytest.mark.parametrize("template", TEMPLATES)
@given(row=talks | rows, completion=texts, finished=st.booleans())
@few
def test_segments_are_the_whole_and_mark_what_is_learned(
    tiny_base, template, row, completion, finished
):
    row = replace(row, history=row.history and TALK.history) if template == "chat" else row
    with with_template(tiny_base, CHAT.replace("] ", "]\n")):
        made = sft_example(tiny_base, template, replace(row, output=completion))
        cut = example(tiny_base, template, row, completion, finished=finished)
    assert cut.prompt == made.prompt
    made = replace(made, completion=cut.completion)
    pieces = segments(tiny_base, made)
    whole = tiny_base.tokenizer.decode(list(made.prompt + made.completion))
    assert "".join(text for text, _ in pieces) == whole
    replies = [lead(template) + read(reply) + "</s>" for _, reply in row.history]
    last = lead(template) + read(completion) + "</s>" * finished
    assert [text for text, learned in pieces if learned] == [*replies, *([last] if last else [])]


# --- packing, padding and masks -------------------------------------------------------------------

THREE = [
    Example((1, 20, 30), (40, 50, 2)),
    Example((1, 21, 31, 41, 51), (2,)),
    Example((1, 22), (32, 42)),
]


def test_collate_puts_sequences_end_to_end(tiny_base):
    batch = collate(tiny_base, THREE)
    assert batch.ids.tolist() == [1, 20, 30, 40, 50, 2, 1, 21, 31, 41, 51, 2, 1, 22, 32, 42]
    assert batch.packing.offsets.tolist() == [0, 6, 12]
    assert batch.packing.positions.tolist() == [0, 1, 2, 3, 4, 5] * 2 + [0, 1, 2, 3]
    assert batch.starts.tolist() == [3, 5, 2]
    assert batch.completion_ids.tolist() == [[40, 50, 2], [2, 0, 0], [32, 42, 0]]
    assert batch.completion_mask.int().tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.last_positions.tolist() == [5, 11, 15]
    assert batch.completion_positions.tolist() == [3, 4, 5, 11, 14, 15]


def test_sequences_of_about_the_same_length_share_a_table():
    lengths = [40, 5, 300, 44, 31, 290, 1]
    packing = Packing.of(lengths, torch.device("cpu"))
    assert sorted((one.rows, one.width) for one in packing.tables) == [(2, 44), (2, 300), (3, 31)]
    tokens = torch.cat([one.tokens for one in packing.tables])
    assert sorted(tokens.tolist()) == list(range(sum(lengths))), "each token once"
    assert torch.equal(tokens[packing.order], torch.arange(sum(lengths)))
    packed = torch.arange(1.0, 1 + sum(lengths)).view(1, 1, -1, 1)
    rows = [row for one in packing.tables for row in one.spread(packed)[:, 0, :, 0]]
    assert sorted(int((row > 0).sum()) for row in rows) == sorted(lengths)
    for row in rows:
        held = row[row > 0]
        assert torch.equal(row[: len(held)], held), "from the first column on"
        assert torch.equal(held, held[0] + torch.arange(len(held))), "one sequence, in order"


def test_an_empty_completion_ends_at_its_prompt(tiny_base):
    batch = collate(tiny_base, [Example((1, 20, 30), ())])
    assert batch.completion_mask.tolist() == [[False]]
    assert batch.last_positions.tolist() == [2]
    assert batch.completion_positions.tolist() == []


def test_earlier_replies_are_taught_too(tiny_base):
    """The second example's prompt holds two earlier replies: 11, eos and 13, eos."""
    turns = Example((1, 10, 11, 2, 12, 13, 2, 14), (15, 2), earlier=((2, 4), (5, 7)))
    batch = collate(tiny_base, [THREE[0], turns, THREE[2]])
    assert turns.loss_tokens == 6
    assert sorted(batch.ids[batch.loss_positions].tolist()) == sorted(
        [40, 50, 2, 11, 2, 13, 2, 15, 2, 32, 42]
    )
    assert batch.ids[batch.completion_positions].tolist() == [40, 50, 2, 15, 2, 32, 42]
    part = batch.rows(1, 2)
    earlier = [token for token in part.loss_positions.tolist() if token < 8]
    assert part.ids[earlier].tolist() == [11, 2, 13, 2]
    assert batch.rows(2, 3).earlier.tolist() == []


def test_left_pad_pads_on_the_left(tiny_base):
    ids, mask = left_pad(tiny_base, [(1, 20, 30), (1,), (1, 21)])
    assert ids.tolist() == [[1, 20, 30], [0, 0, 1], [0, 1, 21]]
    assert mask.int().tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_spread_puts_each_value_back_at_its_token(tiny_base):
    batch = collate(tiny_base, THREE)
    spread = batch.spread(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert spread.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]


def test_spread_carries_gradients_to_the_right_values(tiny_base):
    batch = collate(tiny_base, THREE)
    flat = torch.zeros(6, requires_grad=True)
    weight = torch.arange(9.0).view(3, 3)
    (batch.spread(flat) * weight).sum().backward()
    assert flat.grad.tolist() == [0, 1, 2, 3, 6, 7]


def as_rollout(base, examples):
    batch = collate(base, examples)
    ids, mask = left_pad(base, [one.prompt for one in examples])
    zeros = torch.zeros(batch.completion_mask.shape)
    return ValuedRollout(
        ids, batch.completion_ids, mask, batch.completion_mask, zeros, zeros, zeros, zeros[:, 0]
    )


def same(a: Batch, b: Batch):
    for name in ("ids", "starts", "completion_ids", "completion_mask", "earlier"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ("offsets", "prefixes", "shifts", "positions", "before", "order"):
        assert torch.equal(getattr(a.packing, name), getattr(b.packing, name)), name
    for one, other in zip(a.packing.tables, b.packing.tables, strict=True):
        assert (one.rows, one.width) == (other.rows, other.width)
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.cells, other.cells)


token = st.integers(0, 9)  # pad, bos and eos among them: masks are never inferred from ids
sequences = st.builds(
    Example,
    st.lists(token, min_size=1, max_size=6).map(tuple),
    st.lists(token, min_size=1, max_size=6).map(tuple),
)


@given(examples=st.lists(sequences, min_size=1, max_size=5))
@few
def test_from_rollout_equals_collate(tiny_base, examples):
    rollout = as_rollout(tiny_base, examples)
    same(from_rollout(rollout), collate(tiny_base, examples))


@given(examples=st.lists(sequences, min_size=2, max_size=5), size=st.integers(1, 3))
@few
def test_a_part_of_a_rollout_or_batch_is_the_batch_of_that_part(tiny_base, examples, size):
    rollout, whole = as_rollout(tiny_base, examples), collate(tiny_base, examples)
    for number, part in enumerate(micro_batches(whole, size)):
        chosen = slice(number * size, (number + 1) * size)
        same(from_rollout(rollout[chosen]), part)
        alone = collate(tiny_base, examples[chosen])
        assert torch.equal(part.ids, alone.ids)
        assert torch.equal(part.starts, alone.starts)
        columns = alone.completion_ids.shape[1]
        assert torch.equal(part.completion_ids[:, :columns], alone.completion_ids)
        assert torch.equal(part.completion_mask[:, :columns], alone.completion_mask)
        assert not part.completion_mask[:, columns:].any()


@given(lengths=st.lists(st.integers(1, 9), max_size=12), size=st.integers(1, 5))
@few
def test_by_length_deals_every_index_once_longest_first(lengths, size):
    groups = by_length(lengths, size)
    dealt = [i for group in groups for i in group]
    assert sorted(dealt) == list(range(len(lengths)))
    assert [lengths[i] for i in dealt] == sorted(lengths, reverse=True)
    assert all(len(group) == size for group in groups[:-1])


parts_of_examples = st.lists(st.lists(sequences, min_size=1, max_size=3), min_size=1, max_size=9)


@given(parts=parts_of_examples, size=st.integers(1, 3))
@few
def test_a_micro_batch_has_so_many_parts_or_no_more_tokens_than_the_largest(tiny_base, parts, size):
    batches = within_budget(parts, size, TokenCounts.of_largest(parts).times(size))
    assert [index for batch in batches for index in batch] == list(range(len(parts)))
    assert all(len(batch) >= size for batch in batches[:-1])

    def tokens(indices):
        """Of the batch that is computed: all, cells of its tables, and those with loss."""
        batch = collate(tiny_base, [row for index in indices for row in parts[index]])
        cells = sum(table.rows * table.width for table in batch.packing.tables)
        return torch.tensor([len(batch.ids), cells, len(batch.loss_positions)])

    most = size * torch.stack([tokens([index]) for index in range(len(parts))]).amax(0)
    for batch, after in zip(batches, [*batches[1:], []], strict=True):
        assert len(batch) <= size or (tokens(batch) <= most).all()
        if after:
            assert (tokens([*batch, after[0]]) > most).any(), "no room is left for the next"


@given(rows=st.lists(sequences, min_size=1, max_size=12), size=st.integers(1, 5))
@few
def test_rows_of_the_greatest_length_are_counted_as_rows(rows, size):
    lengths = [len(row) for row in rows]
    largest = TokenCounts.of_largest([[row] for row in rows])
    batches = longest_first(rows, size, largest.times(size))
    dealt = [index for batch in batches for index in batch]
    assert sorted(dealt) == list(range(len(rows)))
    assert [lengths[index] for index in dealt] == sorted(lengths, reverse=True)
    alike = [Example(tuple(range(7)), (8, 9))] * len(rows)
    even = longest_first(alike, size, TokenCounts.of_longest(9).times(size))
    assert even == by_length([9] * len(rows), size)
