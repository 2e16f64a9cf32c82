"""Conversations of which the chat template alters an earlier reply, as Qwen3's and R1's do.

SFT cannot learn from them, and says so before anything is pinned. Every other stage takes the
prompt as the template renders it.
"""

import json
import shutil
from dataclasses import replace

import pytest

from alpaca_rlhf import pipeline
from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.records import Completion, Instruction, PreferencePair, Ranking
from alpaca_rlhf.exporting.reward_model import scored_examples
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import example, prompt_ids, sft_example
from alpaca_rlhf.models.turns import LostReply
from alpaca_rlhf.settings import Lora
from alpaca_rlhf.training.groups import from_pairs, from_rankings
from tests.model_app import prompts
from tests.published_templates import base_with_template

CUTS_THOUGHTS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>"
    "{{ (m.content.split('</think>') | last).strip() }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THOUGHT = "<think>\nTwo twos.\n</think>\n\n4."
TALK = Instruction("And 3+3?", "", "6.", history=(("2+2?", THOUGHT),))


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """The tiny LLaMA with a template that cuts the thought out of each earlier reply."""
    folder = tmp_path_factory.mktemp("thinking") / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text(CUTS_THOUGHTS)
    return folder


def turn(role, content):
    return {"role": role, "content": content}


def talk(opening, question, reply=None):
    """A row whose first reply begins with a thought."""
    turns = [turn("user", opening), turn("assistant", THOUGHT), turn("user", question)]
    return {"messages": [*turns, *([turn("assistant", reply)] if reply else [])]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- the prompt of every stage but SFT ------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill"])
def test_a_published_template_that_cuts_thoughts_stops_sft_alone(name, tmp_path):
    base = base_with_template(name, tmp_path)
    rendered = prompt_ids(base, "chat", TALK)
    assert "Two twos." not in base.tokenizer.decode(list(rendered))
    with pytest.raises(LostReply, match="alters an earlier reply"):
        sft_example(base, "chat", TALK)
    assert example(base, "chat", TALK, "6.").prompt == rendered
    adapters = Adapters(base, Lora(r=4), template="chat")
    pair = PreferencePair(TALK, "6.", "7.", TALK.id)
    (by_pair,) = from_pairs(adapters, [[pair]])
    answers = [Completion(TALK.id, text) for text in ("6.", "7.")]
    ranking = Ranking(TALK.id, tuple((answer.id,) for answer in answers), "ann")
    (by_rank,) = from_rankings(
        adapters, [ranking], {TALK.id: TALK}, {answer.id: answer for answer in answers}
    )
    for scored in (*by_pair.examples, *by_rank.examples, *scored_examples(base, "chat", [TALK])):
        assert scored.prompt == rendered and scored.earlier == ()


def test_a_run_on_such_prompts_and_pairs_goes_to_its_end(folder, tmp_path, capsys):
    """Sampling, the reward model, both judges, PPO and DPO read them as they are rendered."""
    texts = [row.instruction for row in prompts(44)]
    rows = [{"instruction": text, "output": "Yes."} for text in texts[:6]]
    pairs = [
        {"prompt": talk("2+2?", text)["messages"], "chosen": "A fine day.", "rejected": "No."}
        for text in texts[6:16]
    ]
    asked = [talk(f"2+{n}?", text) for n, text in enumerate(texts[16:])]
    out = tmp_path / "run"
    words = ["loop", "--base", str(folder), "--out", str(out), "--inputs.judge", "human"]
    words += ["--inputs.data", str(write(tmp_path / "rows.jsonl", rows))]
    words += ["--inputs.rankings", str(write(tmp_path / "pairs.jsonl", pairs))]
    words += ["--inputs.prompts", str(write(tmp_path / "prompts.jsonl", asked))]
    words += (
        "--lora.r 4 --sft.epochs 1 --sft.held-out 0 --reward.held-out 0.4 --reward.gate 0.01 "
        "--sampling.max-new-tokens 8 --policies ppo best-of-k dpo --ppo.updates 2 "
        "--ppo.value.warmup 1 --ppo.batch-size 4 --ppo.minibatch-size 4 --ppo.max-new-tokens 8 "
        "--best-of-k.k 2 --best-of-k.prompts 4 --evaluate.prompts 4 --evaluate.bootstrap 20"
    ).split()
    assert cli.main(words) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert {"sft", "ppo", "best_of_k", "dpo"} <= set(report["policies"])


# --- SFT ------------------------------------------------------------------------------------------


@pytest.fixture
def sft(folder, tmp_path):
    """Runs `alpaca-rlhf sft` on rows of which the third is lost, and says how it ended."""
    texts = [row.instruction for row in prompts(10)]
    rows = [{"instruction": text, "output": "Yes."} for text in texts]
    rows[2] = talk("2+2?", texts[2], "Yes.")
    rows[3] = {"messages": [turn("user", texts[3]), turn("assistant", "Yes.")] * 2}
    data = write(tmp_path / "rows.jsonl", rows)

    def run(*more, data=data):
        words = ["sft", "--base", folder, "--out", tmp_path / "run", "--inputs.judge", "human"]
        words += ["--inputs.data", data, "--lora.r", 4, "--sft.epochs", 1, "--sft.held-out", 0]
        return cli.main([str(word) for word in (*words, *more)])

    return run


def test_lost_rows_are_named_before_a_folder_is_made(sft, folder, tmp_path, capsys):
    assert sft() == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'rows.jsonl'}:3: the chat template of {folder} alters" in error
    assert "(1 of 10 rows broken)" in error and "--inputs.broken drop" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()
    # Both ways out work, in the folder that was named.
    assert sft("--template", "alpaca") == 0


def test_lost_rows_are_dropped_and_counted(sft, tmp_path, capsys):
    assert sft("--inputs.broken", "drop") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 10 rows are conversations of which the chat template alters" in said
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    rows = ledger["sft"]["facts"]["rows"]
    assert rows["left_out"] == {"unusable": 1} and (rows["rows"], rows["examples"]) == (10, 9)


def test_of_a_base_on_the_hub_they_are_named_by_sft_and_the_way_out_works(
    sft, tmp_path, monkeypatch, capsys
):
    """Its tokenizer is there only after the settings are pinned."""
    monkeypatch.setattr(pipeline, "is_local", lambda name: False)
    assert sft() == 2
    assert "rows.jsonl:3: " in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert sft("--inputs.broken", "drop") == 0, capsys.readouterr().err


@pytest.mark.parametrize("local", [True, False])
def test_rows_that_are_all_lost_are_told_as_such(sft, local, tmp_path, monkeypatch, capsys):
    if not local:
        monkeypatch.setattr(pipeline, "is_local", lambda name: False)
    texts = [row.instruction for row in prompts(4)]
    data = write(tmp_path / "lost.jsonl", [talk("2+2?", text, "Yes.") for text in texts])
    assert sft("--inputs.broken", "drop", data=data) == 2
    assert "alters an earlier reply of every row" in capsys.readouterr().err


def test_an_earlier_reply_without_loss_may_be_altered(folder):
    base = load_base(str(folder))
    learned = sft_example(base, "chat", replace(TALK, masked_replies=(0,)))
    assert learned.prompt == prompt_ids(base, "chat", TALK) and learned.earlier == ()
    assert learned.completion == example(base, "chat", TALK, "6.").completion


def test_a_template_that_leaves_replies_whole_loses_none(folder):
    base = load_base(str(folder))
    plain = replace(TALK, history=(("2+2?", "4."),))
    ((start, end),) = sft_example(base, "chat", plain).earlier
    assert base.tokenizer.decode(list(prompt_ids(base, "chat", plain)[start:end])) == "4.</s>"
