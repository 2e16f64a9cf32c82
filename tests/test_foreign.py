"""Somebody else's SFT adapter: the same function in our shape, and a whole run from it."""

import json
from dataclasses import replace

import pytest
import torch

from alpaca_rlhf.cli import main as cli
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.report.schema import validate_report
from alpaca_rlhf.settings import Inputs
from tests.test_pipeline import report_of, run
from tests.whole_run import Quiet, small

ATTENTION = ["q_proj", "v_proj"]


def foreign(base: str, folder, *, r=3, alpha=9, targets=ATTENTION, seed=0, zero=False, **more):
    """An adapter made by plain peft on a plain model, with a B of its own."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", **more
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and not zero:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.save_pretrained(str(folder))
    return folder


def fine_tuned(folder, settings):
    """Somebody's SFT of the embedded base: plain peft, plain torch, some of the linear layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alpaca_rlhf.core.prompts import lead, render
    from alpaca_rlhf.core.runs import data_path
    from alpaca_rlhf.sources import source_of

    base = str(data_path("cria"))
    words = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=6, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    learner = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    rows = source_of(settings).seeds()
    for step in range(100):
        learner.zero_grad()
        for row in (rows[(6 * step + i) % len(rows)] for i in range(6)):
            prompt = words(render(settings.template, row)).input_ids
            said = words(lead(settings.template) + row.output, add_special_tokens=False).input_ids
            ids = torch.tensor([[*prompt, *said, words.eos_token_id]])
            labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), -100)
            (model(input_ids=ids, labels=labels).loss / 6).backward()
        learner.step()
    model.save_pretrained(str(folder))
    return folder


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    ("r", "alpha", "targets"), [(3, 9, ATTENTION), (4, 8, ["down_proj"]), (1, 5, "all-linear")]
)
def test_it_computes_what_plain_peft_computes(tiny_folder, tmp_path, r, alpha, targets):
    from peft import PeftModel

    from alpaca_rlhf.models.adapters import Adapters
    from alpaca_rlhf.models.base import load_base
    from alpaca_rlhf.models.foreign import adopt
    from alpaca_rlhf.settings import Lora

    folder = foreign(str(tiny_folder), tmp_path / "theirs", r=r, alpha=alpha, targets=targets)
    base = load_base(str(tiny_folder), dtype=torch.float32)
    bare = logits(base.model, torch.arange(5, 25)[None])
    adapters = Adapters(base, Lora(r=4, alpha=8), template="brief")
    layers = adopt(adapters, "sft", folder)
    assert layers == (2 * len(targets) if targets != "all-linear" else 14)
    with adapters.using("sft"):
        ours = logits(base.model, torch.arange(5, 25)[None])
    plain = load_base(str(tiny_folder), dtype=torch.float32)
    plain.model.set_attn_implementation("sdpa")
    theirs = logits(PeftModel.from_pretrained(plain.model, str(folder)), torch.arange(5, 25)[None])
    assert (ours - theirs).abs().max() < 1e-4 < 1e-2 < (bare - theirs).abs().max()


def test_what_it_leaves_free_can_learn(tiny_folder, tmp_path, tiny):
    """Rows of A that are random, columns of B that are zero: a gradient reaches every B."""
    from alpaca_rlhf.models.batches import Example, collate
    from alpaca_rlhf.models.foreign import adopt
    from alpaca_rlhf.models.forward import token_logprobs

    adapters = tiny()
    adopt(adapters, "sft", foreign(str(tiny_folder), tmp_path / "theirs"))
    adapters.trainable("sft")
    with adapters.using("sft"):
        batch = collate(adapters.base, [Example((1, 7, 9), (12, 30, 2))])
        token_logprobs(adapters, batch).sum().backward()
    ups = {key: p for key, p in adapters.parameters("sft").items() if "lora_B" in key}
    assert len(ups) == 14 and all(bool((p.grad.abs().sum(0) > 0).all()) for p in ups.values())


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"r": 8}, "rank 8; give --lora.r 8"),
        ({"zero": True}, "every B matrix is zero"),
        ({"use_dora": True}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"targets": ["lm_head", "q_proj"]}, "lm_head"),
    ],
)
def test_what_cannot_be_taken_is_refused(tiny_folder, tmp_path, tiny, made, told):
    from alpaca_rlhf.models.foreign import adopt

    folder = foreign(str(tiny_folder), tmp_path / "theirs", **made)
    with pytest.raises(UserError, match=told):
        adopt(tiny(), "sft", folder)


def test_an_adapter_of_another_base_is_refused(tmp_path, tiny):
    from alpaca_rlhf.core.runs import data_path
    from alpaca_rlhf.models.foreign import adopt

    folder = foreign(str(data_path("cria")), tmp_path / "theirs")
    with pytest.raises(UserError, match="made for another model"):
        adopt(tiny(), "sft", folder)


def test_a_run_from_it_goes_through_every_later_stage(tmp_path):
    """Reward, PPO and best-of-K start from it; nothing is generated, and SFT trains nothing."""
    out = tmp_path / "run"
    folder = fine_tuned(tmp_path / "theirs", small(out))
    report = run(out, inputs=Inputs(sft_adapter=folder))
    validate_report(report)
    names = [row["name"] for row in report["stages"]]
    assert names == ["sft", "sample", "rank", "reward", "ppo", "best_of_k", "evaluate"]
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["sft"]["facts"]["layers"] == 24 and ledger["sft"]["examples"] == 0
    assert ledger["ppo"]["facts"]["kl_at_start"] == 0.0
    policies = report["policies"]
    assert policies["sft"]["gold_score"] > policies["base"]["gold_score"] + 0.05
    assert not (out / "generate").exists()
    assert "somebody else" in (out / "report.html").read_text()
    again = Quiet()
    assert run(out, again, inputs=Inputs(sft_adapter=folder)) == report_of(out)
    assert again.started == []
    with pytest.raises(UserError, match="sft_adapter"):
        run(out)
    assert cli.main(["export", "--run", str(out), "--to", "adapter"]) == 0
    taken = out / "export" / "ppo-adapter"
    settings = replace(small(tmp_path / "next"), inputs=Inputs(sft_adapter=taken))
    assert (taken / "fingerprint.json").is_file() and settings.inputs.files()


def test_wrong_folders_get_one_line(tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    words = ["sft", "--out", str(tmp_path / "run"), "--inputs.sft-adapter"]
    assert cli.main([*words, str(tmp_path / "theirs")]) == 2
    assert "no adapter_model.safetensors there" in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "nowhere")]) == 2
    assert "--inputs.sft-adapter" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "seeds.jsonl").write_text("{}")
    mine = str(tmp_path / "seeds.jsonl")
    more = ["--inputs.seeds", mine, "--inputs.prompts", mine, "--inputs.judge", "human"]
    assert cli.main([*words, str(tmp_path / "theirs"), *more]) == 2
    assert "nothing is generated" in capsys.readouterr().err
