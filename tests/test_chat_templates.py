"""One way from a conversation to tokens, with chat templates as they are published."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import marked
from alpaca_rlhf.core.records import Instruction, PreferencePair
from alpaca_rlhf.core.runs import day_of
from alpaca_rlhf.data import check_disjoint, read_instructions, read_pairs, read_prompts
from alpaca_rlhf.data.readers.ranked import read_rankings
from alpaca_rlhf.doctor.base import _ends, _mask
from alpaca_rlhf.exporting.tokenizer import compare, exported_tokenizer, ids_of
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import example, prompt_ids, segments, sft_example
from alpaca_rlhf.models.turns import LostReply
from alpaca_rlhf.serving.policy_server import PolicyServer
from alpaca_rlhf.serving.sampling_settings import SamplingSettings
from alpaca_rlhf.settings import Lora
from tests.published_templates import (
    ENDS,
    NAMES,
    OUR_ENDS,
    OURS,
    TWELVE,
    base_with_template,
    published,
    tokenizer_with,
    write_checkpoint,
)
from tests.published_templates import write_rows as lines
from tests.template_table import draws_the_end, is_frozen, is_good, markdown, table_row

SYSTEM = "Answer in one word."
TURNS = [
    ("user", "Name a colour."),
    ("assistant", "Blue."),
    ("user", "Another."),
    ("assistant", "Red."),
]
ROW = Instruction("Another.", history=(("Name a colour.", "Blue."),), system=SYSTEM)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Makes a tiny LLaMA whose tokenizer has everybody's special tokens, and eos of a base."""

    def make(template, *, rows=None):
        return write_checkpoint(
            tmp_path_factory.mktemp("base"), tokenizer_with(template), rows=rows
        )

    return make


@pytest.fixture(scope="module")
def base_with(tmp_path_factory):
    """Loads the tiny LLaMA with a template by its name, once; the first day is 2026-01-02."""
    return cache(lambda name: base_with_template(name, tmp_path_factory.mktemp("base")))


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.fixture
def files(tmp_path):
    """The same dialogue as rows of every kind of file, through their readers."""
    system, turns = message("system", SYSTEM), [message(*turn) for turn in TURNS]
    asked = [system, *turns[:-1]]
    sft = lines(tmp_path / "sft.jsonl", {"messages": [system, *turns]})
    column = lines(tmp_path / "column.jsonl", {"messages": turns, "system": SYSTEM})
    alpaca = lines(
        tmp_path / "alpaca.jsonl",
        {
            "instruction": "Another.",
            "output": "Red.",
            "history": [["Name a colour.", "Blue."]],
            "system": SYSTEM,
        },
    )
    pairs = lines(
        tmp_path / "pairs.jsonl",
        {"prompt": asked, "chosen": "Red.", "rejected": "No."},
        {
            "conversations": asked[1:],
            "system": SYSTEM,
            "chosen": [message("assistant", "Red.")],
            "rejected": "No.",
        },
    )
    ranked = lines(
        tmp_path / "ranked.jsonl", {"prompt": asked, "responses": ["Red.", "No."], "ranks": [0, 1]}
    )
    prompts = lines(tmp_path / "prompts.jsonl", {"messages": asked})
    return {
        "sft": read_instructions(sft)[0],
        "sft, system column": read_instructions(column)[0],
        "sft, alpaca": read_instructions(alpaca)[0],
        "pair": read_pairs(pairs)[0].prompt,
        "pair, system column": read_pairs(pairs)[1].prompt,
        "ranking": read_rankings(ranked)[0][0],
        "ppo": read_prompts(prompts)[0],
    }


# --- one rendering --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_dialogue_has_the_same_ids_in_every_stage_the_app_and_the_export(base_with, files, name):
    base = base_with(name)
    ids = {kind: prompt_ids(base, "chat", row) for kind, row in files.items()}
    ids |= {
        f"{kind}, example": example(base, "chat", row, "Red.").prompt for kind, row in files.items()
    }
    policy_server = object.__new__(PolicyServer)
    policy_server._base, policy_server._template = base, "chat"
    ids["chat"] = policy_server._ids(replace(ROW, system=""), SamplingSettings(system=SYSTEM))
    exported = exported_tokenizer(base, "chat")
    ids["export"] = ids_of(exported, "chat", ROW)
    ids["the template itself"] = prompt_ids(base, "chat", ROW)
    assert len(set(ids.values())) == 1, ids
    text = base.tokenizer.decode(list(ids["sft"]))
    assert text.count(SYSTEM) == 1 and text.index(SYSTEM) < text.index("Name a colour.")
    agreement = compare(base, "chat", exported)
    assert agreement.same == agreement.lone + agreement.conversations


@pytest.mark.parametrize("name", [name for name in NAMES if name != "refuses_system"])
def test_a_system_text_stands_where_the_template_puts_it(base_with, name):
    base = base_with(name)
    rendered = base.tokenizer.apply_chat_template(
        [message("system", SYSTEM), *(message(*turn) for turn in TURNS[:-1])],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert prompt_ids(base, "chat", ROW) == tuple(rendered)


def test_a_template_without_a_place_gets_the_system_text_in_the_first_turn(base_with):
    base = base_with("refuses_system")
    text = base.tokenizer.decode(list(prompt_ids(base, "chat", ROW)))
    assert f"<start_of_turn>user\n{SYSTEM}\n\nName a colour.<end_of_turn>" in text


@pytest.mark.parametrize("template", ["brief", "alpaca"])
def test_plain_templates_put_the_system_text_into_the_first_turn(base_with, files, template):
    base = base_with("like_zephyr")
    ids = {prompt_ids(base, template, row) for row in files.values()}
    folded = Instruction("Another.", history=((f"{SYSTEM}\n\nName a colour.", "Blue."),))
    assert ids == {prompt_ids(base, template, folded)}
    lone = Instruction("Why?", "x", system=SYSTEM)
    assert prompt_ids(base, template, lone) == prompt_ids(
        base, template, Instruction(f"{SYSTEM}\n\nWhy?", "x")
    )
    exported = exported_tokenizer(base, template)
    assert compare(base, template, exported).good


# --- the end of a reply ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_token_after_a_rendered_reply_is_learned_and_stops(base_with, files, name):
    base = base_with(name)
    end = base.tokenizer.convert_tokens_to_ids({**ENDS, **OUR_ENDS}[name])
    assert base.tokenizer.convert_ids_to_tokens(base.eos_id) == "<|end_of_text|>"
    for row in (files["sft"], Instruction("Name a colour.")):
        made = sft_example(base, "chat", replace(row, output="Red."))
        assert made.completion[-1] == end and made.completion.count(end) == 1
        assert len(made.earlier) == len(row.history)
        assert all(made.prompt[stop - 1] == end for _, stop in made.earlier)
    assert end in base.stop_ids
    plain = example(base, "alpaca", Instruction("Name a colour."), "Red.")
    assert plain.completion[-1] == base.eos_id
    finding = _ends(base, "chat")
    assert finding.verdict == "ok" and f"({end}) ends each answer" in finding.found


def test_generation_stops_at_the_templates_end(base_with):
    """The rollout looks at `stop_ids` alone, so a drawn end of turn finishes a completion."""
    base = base_with("like_smollm2")
    assert draws_the_end(base, base.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_a_reply_that_plain_text_follows_ends_with_eos_and_doctor_warns(checkpoint):
    template = (
        "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant\n{% endif %}"
    )
    base = load_base(checkpoint(template), dtype=torch.float32)
    assert example(base, "chat", Instruction("Why?"), "So.").completion[-1] == base.eos_id
    assert _ends(base, "chat").verdict == "warning"
    with pytest.raises(LostReply, match="earlier reply"):
        sft_example(base, "chat", replace(ROW, output="Red."))


# --- refused at load ------------------------------------------------------------------------------


def test_a_template_without_a_generation_prompt_is_refused_at_load(checkpoint):
    bare = OURS["like_zephyr"].partition("{% if add_generation_prompt")[0]
    base = load_base(checkpoint(bare), dtype=torch.float32)
    with pytest.raises(UserError, match="ignores add_generation_prompt") as caught:
        Adapters(base, Lora(r=4), template="chat")
    assert "\n" not in str(caught.value) and "--template alpaca" in str(caught.value)
    Adapters(base, Lora(r=4), template="alpaca")


def test_template_tokens_without_embeddings_are_refused_at_load(checkpoint):
    folder = checkpoint(OURS["like_smollm2"], rows=396)
    with pytest.raises(UserError, match="396 embeddings") as caught:  # eos lies beyond them too
        load_base(folder, dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_only_the_chat_template_minds_its_own_tokens(checkpoint, tmp_path):
    folder = Path(checkpoint(OURS["like_smollm2"].replace("<|im_end|>", "<|new|>")))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(folder)
    base = load_base(str(folder), dtype=torch.float32)
    with pytest.raises(UserError, match=r"writes <\|new\|> \(token \d+\), and the base has"):
        Adapters(base, Lora(r=4), template="chat")
    Adapters(base, Lora(r=4), template="brief")


# --- the date -------------------------------------------------------------------------------------

DATED = (
    "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% else %}"
    "{% set d = '26 Jul 2024' %}{% endif %}Today Date: {{ d }}\n" + OURS["like_zephyr"]
)


@pytest.mark.parametrize("name", ["llama3_2", "ours"])
def test_the_date_of_a_template_is_frozen(checkpoint, name):
    template = DATED if name == "ours" else published(name)
    folder = checkpoint(template)
    bases = {
        day: load_base(folder, dtype=torch.float32, day=day) for day in ("2026-01-02", "2025-12-31")
    }
    texts = {
        day: base.tokenizer.decode(list(prompt_ids(base, "chat", ROW)))
        for day, base in bases.items()
    }
    assert "Today Date: 02 Jan 2026" in texts["2026-01-02"]
    assert "Today Date: 31 Dec 2025" in texts["2025-12-31"]
    first, second = bases.values()
    assert first.fingerprint == second.fingerprint
    exported = exported_tokenizer(first, "chat")
    assert "strftime_now" not in exported.chat_template
    assert ids_of(exported, "chat", ROW) == prompt_ids(first, "chat", ROW)
    assert "2026-01-02" in _mask(first, "chat").found


def test_a_date_in_a_computed_format_is_refused(checkpoint):
    template = "{% set f = '%Y' %}{{ strftime_now(f) }}" + OURS["like_zephyr"]
    base = load_base(checkpoint(template), dtype=torch.float32)
    with pytest.raises(UserError, match="today's date"):
        Adapters(base, Lora(r=4), template="chat")


def test_a_run_prints_the_day_on_which_it_began(tmp_path):
    assert day_of(tmp_path) == ""
    (tmp_path / "provenance.json").write_text('{"started": "2026-03-04T23:59:59Z"}')
    assert day_of(tmp_path) == "2026-03-04"


# --- what carries loss ----------------------------------------------------------------------------


def test_a_reply_of_weight_0_carries_no_loss(base_with, tmp_path):
    turns = [message(*turn) for turn in [*TURNS, ("user", "More."), ("assistant", "Green.")]]
    turns[1]["weight"], turns[3]["weight"] = 0, 1
    (row,) = read_instructions(lines(tmp_path / "a.jsonl", {"messages": turns}))
    assert row.masked_replies == (0,)
    base = base_with("like_smollm2")
    for template in ("chat", "brief"):
        made = sft_example(base, template, row)
        text = marked(segments(base, made))
        learned = [piece.partition("]]")[0] for piece in text.split("[[")[1:]]
        assert len(learned) == 2
        assert "Red." in learned[0] and "Green." in learned[1] and "Blue." in text
    assert Instruction.from_json(json.loads(json.dumps(row.to_json()))) == row
    written = lines(tmp_path / "b.jsonl", row.to_json())
    assert read_instructions(written) == [row]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": False}])
def test_a_conversation_ends_with_its_last_reply_that_carries_loss(tmp_path, flag):
    turns = [message(*turn) for turn in TURNS]
    turns[3] |= flag
    (row,) = read_instructions(lines(tmp_path / "a.jsonl", {"messages": turns}))
    assert row == Instruction("Name a colour.", "", "Blue.", "a.jsonl")


@pytest.mark.parametrize(
    ("flags", "says"),
    [(({"weight": 0}, {"weight": 0}), "no reply"), (({"weight": 2}, {}), "must be 0 or 1")],
)
def test_broken_loss_flags_are_named(tmp_path, flags, says):
    turns = [message(*turn) for turn in TURNS]
    turns[1] |= flags[0]
    turns[3] |= flags[1]
    with pytest.raises(UserError, match=r"a\.jsonl:1: ") as caught:
        read_instructions(lines(tmp_path / "a.jsonl", {"messages": turns}))
    assert says in str(caught.value)


# --- the firewall ---------------------------------------------------------------------------------


def test_the_firewall_sees_dialogues_of_pairs(tmp_path):
    words = ["apples", "boats", "candles", "drums", "engines", "feathers", "gates", "hammers"]
    talks = [
        [
            message("user", f"Tell me what people do with {word} in winter."),
            message("assistant", "They keep them."),
            message("user", f"And who mends old {word} for a small price?"),
        ]
        for word in words
    ]
    pairs = lines(
        tmp_path / "pairs.jsonl",
        *({"prompt": talk, "chosen": "A smith.", "rejected": "Nobody."} for talk in talks),
    )
    prompts = lines(tmp_path / "prompts.jsonl", *({"messages": talk} for talk in talks))
    splits = {
        "rank": [pair.prompt for pair in read_pairs(pairs)],
        "ppo": read_prompts(prompts),
    }
    assert [row.id for row in splits["rank"]] == [row.id for row in splits["ppo"]]
    assert check_disjoint(splits, raise_on_leak=False) == len(words)


# --- kept beside the prompt -----------------------------------------------------------------------


def test_ids_of_prompts_without_a_system_text_are_what_they_were():
    from alpaca_rlhf.core.records import content_hash

    row = Instruction("c", "d", history=(("a", "b"),))
    assert row.id == content_hash("c", "d", "a", "b")
    assert replace(row, system="s").id == content_hash("c", "d", "a", "b", "s")
    assert row.to_json().keys() == {"instruction", "input", "output", "source", "history"}


def test_the_queue_of_rankings_keeps_the_system_text():
    from alpaca_rlhf.preferences.stored_text import restored_history, stored_history

    for row in (ROW, replace(ROW, history=()), replace(ROW, system=""), Instruction("x")):
        restored = restored_history(json.loads(json.dumps(stored_history(row))))
        assert restored == {"system": row.system, "history": row.history}


def test_an_export_of_data_keeps_system_texts_and_loss_flags():
    from alpaca_rlhf.data.readers.comparisons import pair_to_json, pairs_of
    from alpaca_rlhf.data.readers.exporting import _batches
    from alpaca_rlhf.data.readers.formats import instructions_of

    rows = [replace(ROW, output="Red.", masked_replies=(0,)), Instruction("x", "", "y")]
    (batch,) = _batches(iter([row.to_json() for row in rows]), "instructions")
    assert [row for columns in batch.to_pylist() for row in instructions_of(columns, "")] == rows
    pair = PreferencePair(ROW, "Red.", "No.", ROW.id)
    (batch,) = _batches(iter([pair_to_json(pair)]), "pairs")
    assert pairs_of(batch.to_pylist()[0], "") == [pair]


def test_instances_of_a_seed_task_share_its_system_text():
    from alpaca_rlhf.data.readers.formats import instructions_of

    row = {"instruction": "a", "system": "s", "instances": [{"input": "", "output": "b"}]}
    assert [task.system for task in instructions_of(row, "")] == ["s"]


# --- a run's own day ------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["training", "chat", "scores", "export"])
def test_whoever_loads_the_base_of_a_run_gives_its_first_day(tmp_path, monkeypatch, reader):
    from types import SimpleNamespace

    from alpaca_rlhf.exporting import loading
    from alpaca_rlhf.serving import policy_server, scoring
    from alpaca_rlhf.settings import Loop
    from alpaca_rlhf.stages import context

    class Loaded(Exception):
        pass

    def load(name, **options):
        raise Loaded(options["day"])

    (tmp_path / "provenance.json").write_text('{"started": "2026-03-04T05:06:07Z"}')
    settings = Loop(out=tmp_path)
    run = SimpleNamespace(path=tmp_path)
    module, start = {
        "training": (context, lambda: context.Context(settings, run, None, None).base),
        "chat": (policy_server, lambda: PolicyServer(settings, {})),
        "scores": (scoring, lambda: scoring.adapters_of(settings)),
        "export": (
            loading,
            lambda: loading.trained_base(SimpleNamespace(settings=settings, adapter=tmp_path)),
        ),
    }[reader]
    monkeypatch.setattr(module, "load_base", load)
    with pytest.raises(Loaded, match="2026-03-04"):
        start()


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_ten_conversations_have_the_same_ids_in_files_app_export_and_ollama(name, tmp_path):
    """A row of docs/templates.md; `refuses_system` puts system texts into the first question."""
    row = table_row(name, tmp_path)
    assert is_good(row), row


def test_the_table_sees_a_date_that_is_not_frozen(base_with):
    base = base_with("like_zephyr")
    tokenizer = tokenizer_with(DATED)
    assert is_frozen(base, [ROW])
    assert not is_frozen(replace(base, tokenizer=tokenizer), [ROW])


def test_the_page_shows_the_table_of_the_proof():
    root = Path(__file__).parent.parent
    proof = json.loads((root / "docs" / "proof" / "templates.json").read_text())
    assert [row["template"] for row in proof["rows"]] == TWELVE
    assert all(is_good(row) for row in proof["rows"])
    assert markdown(proof["rows"]) in (root / "docs" / "templates.md").read_text()
