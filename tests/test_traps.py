"""Failures that say nothing: each in its naive form, with plain libraries, and then in ours.

The naive half asserts that the failure still happens here, so this file tells when a library mends
it. The other half is one short check; the thorough tests stand in the file of the room.
"""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from tokenizers.processors import TemplateProcessing
from torch.utils.checkpoint import CheckpointError
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.evaluation.win_rate import accuracy_interval
from alpaca_rlhf.models import rollout, scoring
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import Example, collate, example, prompt_ids
from alpaca_rlhf.models.forward import completion_scores, token_stats, token_values
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.vocabulary import target_logprobs
from alpaca_rlhf.settings import SFT, Lora, Sampling
from alpaca_rlhf.training import losses
from alpaca_rlhf.training.loop import Checkpoints, batches
from alpaca_rlhf.training.sft import encode, train_sft

IDS = torch.tensor([[1, 20, 30, 40, 50, 60, 2]])
EXAMPLES = [Example((1, 20, 30, 40), (50, 60, 2)), Example((1, 21), (31, 41, 51, 61, 2))]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def plain(folder, *names, quantized=False, dtype=torch.float32, **lora):
    """The setup of the manuals: a model from transformers, and PEFT's adapters on it."""
    options = {}
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    for i, name in enumerate(names):
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **lora)
        if i == 0:
            model = get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_B" in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def gradients_of(model, name):
    """Of one adapter, the norm of each gradient; None where there is none."""
    found = [p.grad for key, p in model.named_parameters() if f".{name}." in key]
    assert found
    return [None if one is None else float(one.norm()) for one in found]


def loss_of(adapters, examples=EXAMPLES):
    return -token_stats(adapters, collate(adapters.base, examples)).logprobs.sum()


def own_gradient(adapters, name):
    own = [p.grad.flatten() for _, p in sorted(adapters.parameters(name).items())]
    return torch.cat(own).clone()


# --- the adapter switch ---------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_a_switch_before_the_backward_loses_the_gradient(tiny_folder, tiny, reentrant):
    """Silently; and under reentrant checkpointing it lands in the other adapter."""
    model = plain(tiny_folder, "policy", "value").train()
    if reentrant is not None:
        model.enable_input_require_grads()
        kwargs = {"use_reentrant": reentrant}
        model.base_model.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=kwargs
        )
    model.set_adapter("policy")
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    model.set_adapter("value")
    loss.backward()
    assert gradients_of(model, "policy") == [None] * 28
    assert any(one for one in gradients_of(model, "value")) is (reentrant is True)

    adapters = tiny("policy", "value")
    adapters.trainable("policy", "value")
    adapters.checkpointing(reentrant is not None)
    with adapters.training(), pytest.raises(RuntimeError, match="still waits"):
        with adapters.using("policy"):
            kept = loss_of(adapters)
            with adapters.using("value"):
                kept.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_reference_from_disable_adapter_breaks_a_waiting_backward(tiny_folder, tiny, reentrant):
    model = plain(tiny_folder, "policy").train()
    model.enable_input_require_grads()
    kwargs = {"use_reentrant": reentrant}
    model.base_model.model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    with model.disable_adapter():
        if reentrant:
            loss.backward()
        else:
            with pytest.raises(CheckpointError):
                loss.backward()
    assert gradients_of(model, "policy") == [None] * 28

    adapters = tiny("policy")
    adapters.trainable("policy")
    adapters.checkpointing(True)
    with adapters.using("policy"), adapters.training():
        loss = loss_of(adapters)
        with pytest.raises(RuntimeError, match="still waits"), adapters.using(None):
            pass
        loss.backward()
    assert own_gradient(adapters, "policy").norm() > 0


def test_an_optimiser_made_after_set_adapter_forgets_the_other_adapter(tiny_folder, tiny):
    model = plain(tiny_folder, "policy", "value")
    model.set_adapter("policy")
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    assert learning and not any(".value." in key for key in learning)

    adapters = tiny("policy", "value")
    adapters.trainable("policy", "value")
    with adapters.using("policy"):
        for name in ("policy", "value"):
            assert all(p.requires_grad for p in adapters.parameters(name).values())


def test_adapter_names_are_ignored_by_the_inner_model(tiny_folder, tiny):
    model = plain(tiny_folder, "policy").eval()
    inner = model.base_model.model.model
    with torch.no_grad():
        asked = inner(input_ids=IDS, adapter_names=["__base__"]).last_hidden_state
        policy = inner(input_ids=IDS).last_hidden_state
        with model.disable_adapter():
            bare = inner(input_ids=IDS).last_hidden_state
    assert torch.equal(asked, policy)
    assert not torch.allclose(asked, bare, atol=1e-2)

    adapters = tiny("policy")
    with torch.no_grad():
        bare = loss_of(adapters)
        with adapters.using("policy"):
            assert abs(loss_of(adapters) - bare) > 1e-2


def test_modules_to_save_copies_the_output_head_for_each_adapter(tiny_folder, tiny):
    model = plain(tiny_folder, "policy", "value", modules_to_save=["lm_head"])
    heads = [p for key, p in model.named_parameters() if "lm_head" in key]
    assert sum(p.shape == heads[0].shape for p in heads) == 3

    adapters = tiny("policy", "value", "reward")
    heads = [p for key, p in adapters.base.model.named_parameters() if "lm_head" in key]
    assert len(heads) == 1


def test_an_adapter_loads_onto_another_base(tiny_folder, tiny, tmp_path):
    other = tmp_path / "other"
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.neg_()
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(other)
    adapters = tiny("sft")
    adapters.save("sft", tmp_path / "sft")
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(other), str(tmp_path / "sft"))

    stranger = Adapters(
        load_base(str(other), dtype=torch.float32), Lora(r=4, alpha=8), template="brief"
    )
    with pytest.raises(UserError, match="trained on"):
        stranger.load("sft", tmp_path / "sft")


# --- the 4-bit base -------------------------------------------------------------------------------


def test_a_rollout_repacks_the_weights_and_spoils_later_gradients(tiny_folder, tiny):
    """bitsandbytes on AVX512-BF16: the first forward in eval mode changes every one after it."""
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn.modules import Linear4bit

    adapters = tiny("policy")
    linear = [m for m in adapters.base.model.modules() if isinstance(m, Linear4bit)]
    assert len(linear) == 14
    assert not any(m.support_avx512bf16_for_cpu for m in linear)
    if not has_avx512bf16():
        pytest.skip("the naive half needs a CPU with AVX512-BF16; here nothing would be repacked")

    def gradient(model):
        model.zero_grad()
        model.train()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        found = [p.grad.flatten() for key, p in model.named_parameters() if "lora_" in key]
        return torch.cat(found).clone()

    model = plain(tiny_folder, "policy", quantized=True, dtype=torch.bfloat16)
    before = gradient(model)
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert (gradient(model) - before).norm() > 0.1 * before.norm()

    adapters.trainable("policy")
    found = []
    for _ in range(2):
        adapters.trainable("policy")
        with adapters.using("policy"), adapters.training():
            loss_of(adapters).backward()
        found.append(own_gradient(adapters, "policy"))
        with adapters.using("policy"), torch.no_grad():
            loss_of(adapters)
    assert torch.equal(*found)


def test_merging_into_4_bit_loses_what_was_learned(tiny_folder, tiny):
    model = plain(tiny_folder, "sft", quantized=True).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_B" in key:
                p.mul_(0.02)  # as small as what fine-tuning learns
        learned = model(input_ids=IDS).logits
        with model.disable_adapter():
            bare = model(input_ids=IDS).logits
        with pytest.warns(UserWarning, match="rounding errors"):
            merged = model.merge_and_unload()(input_ids=IDS).logits
    assert (merged - learned).norm() > 0.5 * (learned - bare).norm()

    adapters = tiny("sft")
    adapters.add("policy", copy_of="sft")
    with torch.no_grad(), adapters.using("sft"):
        before = loss_of(adapters)
    with torch.no_grad(), adapters.using("policy"):
        assert torch.equal(loss_of(adapters), before)


def test_prepare_model_for_kbit_training_upcasts_the_embeddings(tiny_folder, tiny):
    model = plain(tiny_folder, quantized=True, dtype=torch.bfloat16)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    assert model.model.embed_tokens.weight.dtype == model.lm_head.weight.dtype == torch.float32
    assert model(input_ids=IDS).logits.dtype == torch.float32

    adapters = tiny("policy", dtype=torch.bfloat16)
    adapters.trainable("policy")
    kept = {p.dtype for key, p in adapters.base.model.named_parameters() if "lora_" not in key}
    assert kept == {torch.bfloat16, torch.uint8}


def test_checkpointing_with_frozen_embeddings_learns_nothing(tiny_folder, tiny):
    """Reentrant, and the inputs without a gradient; transformers 5 sees to that by itself."""
    model = plain(tiny_folder, "policy").train()
    kwargs = {"use_reentrant": True}
    model.base_model.model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    model.base_model.model.disable_input_require_grads()
    hidden = model.base_model.model.model(input_ids=IDS, use_cache=False).last_hidden_state
    assert not hidden.requires_grad

    adapters = tiny("policy")
    adapters.trainable("policy")
    adapters.checkpointing(True)
    with adapters.using("policy"), adapters.training():
        loss_of(adapters).backward()
    assert all(p.grad.norm() > 0 for p in adapters.parameters("policy").values())


# --- packing, masks, generation -------------------------------------------------------------------


@pytest.mark.parametrize("mistake", [{"attention_mask": torch.ones(1, 14)}, {"use_cache": True}])
def test_packed_documents_see_each_other(tiny_folder, tiny, mistake):
    model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    other = torch.tensor([[1, 70, 80, 90, 99, 35, 2]])
    places = torch.arange(7).repeat(2)[None]
    with torch.no_grad():
        alone = model(input_ids=IDS, use_cache=False).logits[0]
        packed = {"input_ids": torch.cat([other, IDS], 1), "position_ids": places}
        right = model(**packed, use_cache=False).logits[0, 7:]
        wrong = model(**packed, **{"use_cache": False, **mistake}).logits[0, 7:]
    assert torch.allclose(right, alone, atol=1e-4)
    assert (wrong - alone).abs().max() > 0.1

    adapters = tiny("policy")
    with torch.no_grad(), adapters.using("policy"):
        pair = token_stats(adapters, collate(adapters.base, EXAMPLES)).logprobs
        one = token_stats(adapters, collate(adapters.base, EXAMPLES[1:])).logprobs
    assert torch.allclose(pair[1], one[0], atol=1e-5)


def test_generation_in_train_mode_under_checkpointing_is_garbage(tiny_folder, tiny):
    model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    ask = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    told = [model.train(train).generate(IDS, **ask).tolist() for train in (False, True)]
    assert told[0] != told[1]

    adapters = tiny("policy")
    adapters.checkpointing(True)
    with adapters.training(), pytest.raises(RuntimeError, match="train mode"):
        rollout.sample(adapters, "policy", [(1, 20)], ["a"], sampling=Sampling(), seed=0)


def test_masks_inferred_from_ids_lose_a_sampled_pad(tiny):
    """The policy may well say the token that pads."""
    adapters = tiny("policy")
    pad = adapters.base.pad_id
    one = Example((1, 20, pad, 30), (40, pad, 50, 2))
    ids = torch.tensor([one.prompt + one.completion])
    assert int((ids != pad).sum()) == 6

    batch = collate(adapters.base, [one, EXAMPLES[0]])
    assert batch.completion_mask.sum(1).tolist() == [4, 3]
    with torch.no_grad(), adapters.using("policy"):
        found = token_stats(adapters, batch).logprobs[0]
        logits = adapters.base.model(input_ids=ids).logits[0, 3:-1].log_softmax(-1)
    assert torch.allclose(found, logits.gather(1, ids[0, 4:, None])[:, 0], atol=1e-4)


def test_generate_reads_the_prompt_once_a_sample(tiny_folder, tiny):
    def first_rows(embedding, run):
        rows = []
        hook = embedding.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
        run()
        hook.remove()
        return rows[0]

    model = LlamaForCausalLM.from_pretrained(tiny_folder).eval()
    ask = {"max_new_tokens": 2, "do_sample": True, "num_return_sequences": 4}
    assert first_rows(model.model.embed_tokens, lambda: model.generate(IDS[:, :4], **ask)) == 4

    adapters = tiny("policy")
    ours = {"k": 4, "sampling": Sampling(max_new_tokens=2), "seed": 0}
    run = lambda: rollout.sample(adapters, "policy", [(1, 20, 30)], ["a"], **ours)  # noqa: E731
    assert first_rows(adapters.base.model.get_input_embeddings(), run) == 1


def test_a_sampled_completion_depends_on_its_batch(tiny_folder, tiny):
    model = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    ask = {"max_new_tokens": 8, "do_sample": True, "eos_token_id": None}
    said = []
    for rows in (1, 2):
        torch.manual_seed(0)
        said.append(model.generate(IDS[:, :4].repeat(rows, 1), **ask)[-1].tolist())
    assert said[0] != said[1]

    adapters = tiny("policy")
    ours = {"sampling": Sampling(max_new_tokens=8), "seed": 0}
    alone = rollout.sample(adapters, "policy", [(1, 20, 30)], ["a"], **ours)
    pair = rollout.sample(adapters, "policy", [(1, 50), (1, 20, 30)], ["b", "a"], **ours)
    assert pair[1] == alone[0]


def test_log_probabilities_of_the_decode_loop_are_not_those_of_training(tiny):
    """In bf16 the ratio of an unchanged policy is then not 1; ours asks the training forward."""
    adapters = tiny("policy", dtype=torch.bfloat16)
    prompt, ask = (1, 20, 30, 40), Sampling(max_new_tokens=24)
    with adapters.using("policy"):
        out = adapters.base.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=ask.max_new_tokens,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    said = out.sequences[0, 4:]
    decoded = torch.stack(out.logits).float()[:, 0].log_softmax(-1).gather(1, said[:, None])[:, 0]
    batch = collate(adapters.base, [Example(prompt, tuple(said.tolist()))])
    old, _ = scoring.logprobs(adapters, "policy", batch, micro_batch_size=1)
    adapters.trainable("policy")
    with adapters.using("policy"), adapters.training():
        new = token_stats(adapters, batch).logprobs.detach()
    assert (decoded - new[0]).abs().max() > 1e-4
    assert torch.equal(old, new)


# --- text to tokens -------------------------------------------------------------------------------


def test_labels_equal_to_pad_hide_eos_where_pad_is_eos(tiny_folder, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token = tokenizer.eos_token  # as half of all scripts say
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    labels = collator([{"input_ids": [1, 20, 30, 2]}, {"input_ids": [1, 20, 2]}])["labels"]
    assert (labels == 2).sum() == 0, "nobody is taught to stop"

    adapters = tiny("sft")
    assert adapters.base.pad_id != adapters.base.eos_id
    batch = collate(adapters.base, [Example((1, 20), (30, 2)), Example((1,), (20, 2))])
    assert (batch.completion_ids[batch.completion_mask] == 2).sum() == 2


def test_truncation_drops_eos(tiny_folder, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    text = "Name a colour. " * 8 + tokenizer.eos_token
    cut = tokenizer(text, truncation=True, max_length=16, add_special_tokens=False)["input_ids"]
    assert len(cut) == 16 and tokenizer.eos_token_id not in cut

    adapters = tiny("sft")
    rows = [Instruction("Name a colour.", "", "Blue. " * n) for n in (1, 40)]
    encoded = encode(adapters, rows, 64)
    fitting = encoded.examples
    assert (len(fitting), encoded.too_long) == (1, rows[1:]), "left out whole, and told"
    assert fitting[0].completion[-1] == adapters.base.eos_id
    unfinished = example(adapters.base, "brief", rows[0], "Blue.", finished=False)
    assert adapters.base.eos_id not in unfinished.completion


def test_bos_stands_twice_before_a_rendered_chat(tiny_folder, tiny):
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    adapters = tiny()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )  # as LLaMA's own
    tokenizer.chat_template = template
    said = [{"role": "user", "content": "Name a colour."}]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2

    object.__setattr__(adapters.base, "tokenizer", tokenizer)
    for name in ("chat", "alpaca", "brief"):
        ids = prompt_ids(adapters.base, name, Instruction("Name a colour."))
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


# --- losses, precision, accumulation --------------------------------------------------------------


def test_a_mean_of_means_weighs_tokens_by_their_neighbours(tiny_folder, tiny, tmp_path, gradients):
    """One example of 1 taught token and one of 20, in a batch cut in two."""
    rows = [Example((1, 20), (2,)), Example((1, 30), (*range(40, 59), 2))]
    settings = {"lr": 1e-3, "epochs": 1, "batch_size": 2, "warmup": 0.0, "max_grad_norm": 1e9}
    settings["max_length"] = 22  # of one row, so that they are not packed into one
    for size in (1, 2):
        adapters = tiny("sft")
        numbers = SFT(**settings, micro_batch_size=size)
        options = {"seed": 0, "checkpoints": Checkpoints(tmp_path / str(size))}
        train_sft(adapters, "sft", rows, [], numbers, log=lambda row: None, **options)
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()

    model = plain(tiny_folder, "sft")
    found = []
    for cut in (True, False):
        model.zero_grad()
        sums = []
        for one in rows:
            ids = torch.tensor([one.prompt + one.completion])
            labels = ids.clone()
            labels[:, : len(one.prompt)] = -100
            sums.append((model(input_ids=ids, labels=labels).loss, len(one.completion)))
        parts = [loss / 2 if cut else loss * n / 21 for loss, n in sums]
        torch.stack(parts).sum().backward()
        own = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(own).clone())
    assert (found[0] - found[1]).norm() > 0.2 * found[1].norm()


def test_bf16_log_softmax_is_wrong_in_the_second_digit():
    torch.manual_seed(0)
    states, head = torch.randn(64, 64).bfloat16(), (torch.randn(32000, 64) / 8).bfloat16()
    targets = torch.randint(0, 32000, (64,))
    logits = states @ head.T
    exact = logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    naive = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double()
    ours = target_logprobs(states, head, targets).logprobs
    assert (naive - exact).std() > 0.01, "a tenth of PPO's clip range"
    assert ours.dtype == torch.float32
    assert (ours.double() - exact).abs().max() < 1e-4


def test_bf16_weights_lose_small_steps(tiny):
    torch.manual_seed(0)
    weights = (torch.randn(10000) * 0.0156).bfloat16()
    assert ((weights - 1e-5) == weights).float().mean() > 0.7

    adapters = tiny("policy", dtype=torch.bfloat16)
    for p in adapters.parameters("policy").values():
        moved = p.detach() - 1e-5
        assert (moved == p).float().mean() < 0.01


def test_autocast_runs_an_fp32_head_in_bf16(tiny):
    adapters = tiny("reward", dtype=torch.bfloat16)
    head = ScalarHead(128, seed=1)
    linear = torch.nn.Linear(128, 1)
    batch = collate(adapters.base, EXAMPLES)
    with torch.no_grad(), adapters.using("reward"):
        with adapters.base.autocast():
            assert linear(torch.ones(1, 128)).dtype == torch.bfloat16
            scores = completion_scores(adapters, head, batch)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, completion_scores(adapters, head, batch))


def test_dropout_moves_the_ratio_of_an_unchanged_policy(tiny_folder, tiny):
    model = plain(tiny_folder, "policy", lora_dropout=0.05).train()
    with torch.no_grad():
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)

    adapters = tiny("policy")
    with torch.no_grad(), adapters.using("policy"), adapters.training():
        assert torch.equal(loss_of(adapters), loss_of(adapters))


def test_log_of_sigmoid_is_infinite_where_it_matters_most():
    scores = torch.tensor([-100.0, 100.0], requires_grad=True)
    assert torch.log(torch.sigmoid(scores[0] - scores[1])).item() == -math.inf

    losses.ranking_loss(scores, torch.tensor([[0, 1]])).backward()
    assert scores.grad.tolist() == [-1, 1]


# --- rewards, references, metrics -----------------------------------------------------------------


def test_hf_reads_the_reward_before_eos_where_pad_is_eos(tiny_folder, tiny):
    """It looks for the last id that is not the pad's, and no mask can tell it otherwise."""
    model = LlamaForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=1, pad_token_id=2, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        states = model.model(input_ids=IDS).last_hidden_state[0]
        found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.item()
        by_hand = model.score(states)[:, 0].tolist()
    assert found == pytest.approx(by_hand[-2], abs=1e-5)
    assert found != pytest.approx(by_hand[-1], abs=1e-3)

    adapters = tiny("reward")
    head = ScalarHead(128, seed=1)
    with torch.no_grad(), adapters.using("reward"):
        ours = completion_scores(adapters, head, collate(adapters.base, EXAMPLES)).tolist()
        states = adapters.base.model.model(input_ids=IDS).last_hidden_state[0]
    assert ours[0] == pytest.approx(head(states[-1]).item(), abs=1e-4)


def test_the_bare_base_as_reference_is_far_away_at_step_0(tiny_folder, tiny):
    model = plain(tiny_folder, "policy").eval()  # the policy starts from SFT, as TRL has it
    with torch.no_grad():
        policy = model(input_ids=IDS).logits.log_softmax(-1)
        with model.disable_adapter():
            reference = model(input_ids=IDS).logits.log_softmax(-1)
    assert (policy.exp() * (policy - reference)).sum(-1).mean() > 0.01

    adapters = tiny("sft")
    adapters.add("policy", copy_of="sft")
    batch = collate(adapters.base, EXAMPLES)
    found = [
        scoring.logprobs(adapters, role, batch, micro_batch_size=2)[0] for role in ("policy", "sft")
    ]
    assert torch.equal(losses.kl_k1(*found), torch.zeros_like(found[0]))


def test_a_score_one_step_after_eos_loses_a_lambda(tiny):
    """Finished rows only: so in TRL a completion that stops earns less for the same score."""
    lam, length = 0.95, 20
    mask = torch.ones(2, length + 1, dtype=torch.bool)
    late = torch.zeros(2, length + 1)
    late[0, length] = late[1, length - 1] = 1.0
    credit = losses.gae(late, torch.zeros_like(late), mask, gamma=1.0, lam=lam).advantages[:, 0]
    assert credit[0].item() == pytest.approx(0.3585, abs=1e-4)
    assert credit[1].item() == pytest.approx(0.3774, abs=1e-4)

    mask[:, -1] = False
    zeros = torch.zeros(2, length + 1)
    rewards = losses.token_rewards(torch.ones(2), zeros, mask, kl_coef=0.1)
    credit = losses.gae(rewards, zeros, mask, gamma=1.0, lam=lam).advantages[:, 0]
    assert credit.tolist() == pytest.approx([0.3774, 0.3774], abs=1e-4)


def test_a_missing_eos_score_means_nothing_on_raw_scores():
    """Of raw scores around -6, the fixed -1 of a completion that never stops is the best one."""
    raw = torch.tensor([-5.0, -6.0, -7.0, -6.5])
    assert (raw > -1).sum() == 0

    head = ScalarHead(4)
    head.normalise(raw)
    normal = head.gain * raw + head.bias
    assert (normal > -1).sum() == 3


def test_unmasked_means_change_with_the_padding():
    x, mask = torch.tensor([[0.3, 0.5, 0.0]]), torch.tensor([[True, True, False]])
    wide, wide_mask = torch.cat([x, x * 0], 1), torch.cat([mask, mask & False], 1)
    assert x.mean() != wide.mean()
    log_ratio = losses.kl_k3(wide, wide * 0 + 0.1)
    assert log_ratio.mean() != log_ratio[:, :3].mean()

    assert losses.masked_mean(x, mask) == losses.masked_mean(wide, wide_mask) == 0.4
    assert torch.equal(losses.whiten(wide, wide_mask)[:, :3], losses.whiten(x, mask))


def test_bessels_correction_does_not_whiten_to_variance_1():
    x, mask = torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]])
    assert ((x[mask] - 2) / x[mask].std()).square().mean() < 0.6
    assert losses.whiten(x, mask)[mask].square().mean().item() == pytest.approx(1, abs=1e-5)


def test_numpys_permutation_does_not_hear_torchs_seed():
    orders = []
    for _ in range(2):
        torch.manual_seed(0)
        orders.append(np.random.permutation(50).tolist())
    assert orders[0] != orders[1]
    assert batches(50, 50, 1, seed=0) == batches(50, 50, 1, seed=0)
    assert batches(50, 50, 1, seed=0) != batches(50, 50, 1, seed=1)


def test_a_mean_of_batch_accuracies_overweighs_the_last_one():
    right = [1.0] * 8 + [0.0] * 2
    by_batch = [sum(right[i : i + 4]) / len(right[i : i + 4]) for i in range(0, 10, 4)]
    assert sum(by_batch) / 3 == pytest.approx(2 / 3)

    found = accuracy_interval([right[:4], right[4:8], right[8:]])
    assert found.mean == pytest.approx(0.8)


def test_a_value_read_at_its_own_token_has_seen_the_answer(tiny):
    one, other = Example((1, 20), (30, 40, 2)), Example((1, 20), (30, 41, 2))
    adapters = tiny("value")
    head = ScalarHead(128, seed=1)
    with torch.no_grad(), adapters.using("value"):
        naive = [
            head(adapters.base.model.model(input_ids=torch.tensor([e.prompt + e.completion]))[0])
            for e in (one, other)
        ]
        assert naive[0][0, 3] != naive[1][0, 3]  # states[:, context:], one place too far
        ours = [token_values(adapters, head, collate(adapters.base, [e]))[0] for e in (one, other)]
    assert torch.equal(ours[0][:2], ours[1][:2])
    assert ours[0][2] != ours[1][2]
