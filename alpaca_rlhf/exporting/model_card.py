"""The model card of an export: contents, loading, checks, training, figures and licence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from alpaca_rlhf import __version__
from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2, smollm2_folder
from alpaca_rlhf.core.sizes import too_few
from alpaca_rlhf.evaluation.accuracy_words import (
    beside_baselines,
    ensemble_in_words,
    judge_beside_baselines,
    judge_in_words,
)
from alpaca_rlhf.exporting import ollama
from alpaca_rlhf.exporting.licences import duties
from alpaca_rlhf.exporting.parity import Parity
from alpaca_rlhf.exporting.request import ExportRequest
from alpaca_rlhf.models.template_traits import end_id, template_traits
from alpaca_rlhf.settings.parsing import to_yaml

_Rows = list[tuple[str, str]]
_POLICY = (
    ("gold_score", "score, sampled"),
    ("gold_score_greedy", "score, greedy"),
    ("paired_gain_vs_sft", "gain over SFT"),
    ("paired_gain_ci95", "its 95% interval"),
    ("win_rate_vs_sft", "wins against SFT"),
    ("kl_from_sft_nats", "KL from SFT, nats a completion"),
    ("stop_rate", "share that ends by itself"),
    ("mean_tokens", "mean tokens"),
)


@dataclass(frozen=True)
class WrittenExport:
    """The files of an export that its model card describes."""

    checks: Mapping[str, Parity]
    """Results of the parity checks, by name."""
    licence_files: Sequence[str]
    """Names of the licence files copied from the base."""
    tokenizer: Any = None
    """The exported tokenizer, which a reward model scores with."""

    def scoring_lines(self, template: str) -> tuple[str, ...]:
        """Lines of Python that score a reply as training did."""
        score = ".logits[0, 0] + model.config.score_bias"
        if template != "chat":
            return (
                'turns = [{"role": "user", "content": "Hi"}, '
                '{"role": "assistant", "content": "Hello."}]',
                "score = model(tokenizer.apply_chat_template(turns, return_tensors='pt', "
                f"return_dict=False)){score}",
            )
        # A base's own template may add text after the end of a reply, and training scored that end.
        traits = template_traits(self.tokenizer)
        end = self.tokenizer.convert_ids_to_tokens(end_id(self.tokenizer, template))
        reply, end_text = (
            json.dumps(text, ensure_ascii=False)
            for text in (f"{traits.gap if traits else ''}Hello.", str(end))
        )
        return (
            'prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], '
            "tokenize=False, add_generation_prompt=True)",
            f"ids = tokenizer(prompt + {reply} + {end_text}, add_special_tokens=False, "
            "return_tensors='pt').input_ids",
            f"score = model(ids){score}",
        )


def model_card(
    request: ExportRequest,
    report: Mapping[str, Any] | None,
    ledger: Mapping[str, Any],
    written: WrittenExport,
) -> str:
    """Write the text of `README.md`.

    Args:
        request: The request for the export.
        report: The run's `report.json`.
        ledger: The run's finished stages.
        written: The files that it describes.
    """
    settings, checks = request.settings, written.checks
    passed = all(check.passed for check in checks.values())
    warning = (
        ""
        if passed
        else "\n> **This export FAILED its check and must not be used.** `parity.json` says why.\n"
    )
    tags = ["alpaca-rlhf", request.policy.partition(".")[0], request.target]
    front_matter: dict[str, Any] = {"tags": tags, "base_model": settings.base}
    if request.target == "adapter":
        front_matter["library_name"] = "peft"
    elif request.target != "gguf":
        front_matter["library_name"] = "transformers"
    if settings.base == "embedded":
        del front_matter["base_model"]
    if settings.base == SMOLLM2:
        front_matter["base_model"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    if settings.base in (EMBEDDED, SMOLLM2):
        front_matter["license"] = "apache-2.0"
    check_lines = "\n".join(
        f"- {name}: {'passed' if check.passed else 'FAILED'}; {check.line}"
        for name, check in checks.items()
    )
    duty_lines = [*duties(settings.base)]
    if written.licence_files:
        duty_lines.append(f"Copied from the base: {', '.join(written.licence_files)}.")
    duty_lines.append(
        "The licences of the training data hold too: answers written by OpenAI's models, as "
        "Alpaca's are (CC BY-NC 4.0), may not be used to compete with them."
    )
    return (
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n\n# {request.name}\n{warning}\n"
        f"{_description(request)}\n\n## Load it\n\n{_load(request, written)}\n\n"
        f"{_prompts(request)}\n\n## Checked\n\n{check_lines}\n\n"
        f"## How it was made\n\n{_stages(request, ledger)}\n\n"
        f"Prompt template `{settings.template}`, seed {settings.seed}, made with alpaca-rlhf "
        f"{__version__}: `{request.command}`.\n\n## Figures\n\n{_figures(request, report)}\n\n"
        "## Licence\n\n" + "\n".join(f"- {rule}" for rule in duty_lines) + "\n\n## Settings\n\n"
        f"```yaml\n{to_yaml(settings).rstrip()}\n```\n"
    )


def _description(request: ExportRequest) -> str:
    base = "the embedded base of alpaca-rlhf" if request.settings.base == "embedded" else "`{}`"
    base = base.format(request.settings.base)
    kinds = {
        "adapter": f"A LoRA adapter on {base}, in 4 bits (NF4, double-quantised) as in training.",
        "merged": f"{base} with a LoRA adapter merged into its dequantised NF4 weights, in "
        f"{request.dtype}.",
        "reward": f"A reward model on {base}: a sequence classifier with one label, in "
        f"{request.dtype}.",
        "gguf": f"{base} with a LoRA adapter merged in, as GGUF ({request.dtype}).",
    }
    text = kinds[request.target]
    laboratory = (
        " A laboratory animal: it knows one small world in simple English and nothing else."
        if request.settings.base == EMBEDDED
        else ""
    )
    return text[0].upper() + text[1:] + laboratory


def _load(request: ExportRequest, written: WrittenExport) -> str:
    folders = {EMBEDDED: "data/cria", SMOLLM2: str(smollm2_folder())}
    base = folders.get(request.settings.base, request.settings.base)
    folder = request.out.name
    lines = {
        "merged": (
            "from transformers import pipeline",
            f'chat = pipeline("text-generation", "{folder}")',
            'turns = [{"role": "user", "content": "Name three colours."}]',
            'print(chat(turns, max_new_tokens=64)[0]["generated_text"][-1]["content"])',
        ),
        "adapter": (
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, BitsAndBytesConfig",
            'nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            "bnb_4bit_use_double_quant=True)",
            "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("
            f'"{base}", quantization_config=nf4), "{folder}")',
        ),
        "reward": (
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            f'model, tokenizer = (auto_class.from_pretrained("{folder}") for auto_class in '
            "(AutoModelForSequenceClassification, AutoTokenizer))",
            *(
                written.scoring_lines(request.settings.template)
                if request.target == "reward"
                else ()
            ),
        ),
    }
    if request.target == "gguf":
        name = ollama.model_name(request.name)
        return f"    ollama create {name} -f Modelfile\n    ollama run {name}"
    return "```python\n" + "\n".join(lines[request.target]) + "\n```"


def _prompts(request: ExportRequest) -> str:
    if request.settings.template == "chat":
        return "Prompts are rendered by the tokenizer's own chat template, as in training."
    return (
        "The tokenizer's chat template renders prompts as in training. A user's message may have a "
        "key `input` beside `content`; a system message becomes the first paragraph of the first "
        "instruction."
    )


def _stages(request: ExportRequest, ledger: Mapping[str, Any]) -> str:
    rows = ["| stage | examples | tokens | minutes |", "|---|---|---|---|"]
    for stage, row in ledger.items():
        if isinstance(row, Mapping) and "examples" in row and "seconds" in row:
            minutes = row["seconds"] / 60
            rows.append(f"| {stage} | {row['examples']} | {row['tokens']} | {minutes:.1f} |")
    inputs = [f"- {name}: `{path}`" for name, path in request.settings.inputs.files().items()]
    data = inputs or ["- tasks of the small world, made by its own rules"]
    return "\n".join([*rows, "", "Data:", "", *data])


def _figures(request: ExportRequest, report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "The run has no report yet: its policies have not been compared."
    if request.target == "reward":
        return _reward_figures(request, report)
    figures = report["policies"].get(request.policy, {})
    if not figures:
        return "The run's report has no figures for it."
    prompts = report.get("prompts", {})
    no_interval = too_few(prompts.get("eval"), prompts.get("eval_clusters"))
    left_out = {"paired_gain_ci95"} if no_interval or request.policy == "sft" else set()
    rows = [
        (label, _number(figures[key]))
        for key, label in _POLICY
        if key not in left_out and figures.get(key) is not None
    ]
    temperature = report.get("temperatures", {}).get("evaluate", 1.0)
    measured = report.get("judge_accuracy")
    judge = judge_in_words(measured) if measured else report.get("judge", "gold")
    note = f"On prompts that no stage has seen, at temperature {temperature:g}; judge: {judge}."
    beside = judge_beside_baselines(measured) if measured else None
    if beside is not None:
        note += f" Rules that learn nothing, on the same pairs: {beside}."
    if no_interval:
        note += f" {prompts['eval']:,} prompts are too few for an interval."
    return f"{_table(rows)}\n\n{note}"


def _reward_figures(request: ExportRequest, report: Mapping[str, Any]) -> str:
    """Accuracy of a reward model beside its baselines, with intervals where there is enough."""
    number = request.policy.partition(".")[2] or "1"
    models = [model for model in report["reward_models"] if str(model["round"]) == number]
    if not models:
        return "The run's report has no figures for it."
    model = models[0]
    pairs, prompts = model.get("held_out_pairs"), model.get("held_out_prompts")
    has_interval = not too_few(pairs, prompts)
    rows = [
        ("pairs that it learned from", _number(model["pairs"])),
        ("held-out accuracy", _number(model["held_out_accuracy"])),
    ]
    if has_interval:
        rows.append(("its 95% interval", _number(model["ci95"])))
    if model.get("heads"):
        label = (
            f"held-out accuracy of the mean of its {model['heads']} heads, which this file gives"
        )
        rows.append((label, _number(model["mean_accuracy"])))
    rows += [
        (
            f"accuracy of \u201c{rule['is']}\u201d, a rule that learns nothing",
            _number(rule["accuracy"]),
        )
        for rule in model.get("baselines", ())
    ]
    if model.get("shuffled_label_accuracy") is not None:
        label = "accuracy of a control on shuffled verdicts"
        rows.append((label, _number(model["shuffled_label_accuracy"])))
    note = "On rankings of prompts that it has not seen"
    if pairs is not None:
        note += f": {pairs:,} pairs" + ("" if prompts is None else f" of {prompts:,} prompts")
    note += "." if has_interval else ", too few for an interval."
    if model.get("heads"):
        note += f" In its run it had {ensemble_in_words(model)}."
    if model.get("baselines") and pairs is not None and prompts is not None:
        note += f" {beside_baselines(model['baselines'], pairs, prompts)}."
    return f"{_table(rows)}\n\n{note}"


def _table(rows: _Rows) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def _number(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(_number(number) for number in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
