"""The model card of an export: contents, loading, checks, training, figures and licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from alpaca_rlhf import __version__
from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2, smollm2_folder
from alpaca_rlhf.exporting import ollama
from alpaca_rlhf.exporting.licences import duties
from alpaca_rlhf.exporting.parity import Parity
from alpaca_rlhf.exporting.request import ExportRequest
from alpaca_rlhf.settings.parsing import to_yaml

_Names = tuple[tuple[str, str], ...]
_POLICY: _Names = (
    ("gold_score", "score, sampled"),
    ("gold_score_greedy", "score, greedy"),
    ("paired_gain_vs_sft", "gain over SFT"),
    ("win_rate_vs_sft", "wins against SFT"),
    ("kl_from_sft_nats", "KL from SFT, nats a completion"),
    ("stop_rate", "share that ends by itself"),
    ("mean_tokens", "mean tokens"),
)
_REWARD: _Names = (
    ("pairs", "pairs"),
    ("held_out_accuracy", "held-out accuracy"),
    ("ci95", "its 95% interval"),
    ("shuffled_label_accuracy", "accuracy of a control on shuffled verdicts"),
)

_SCORING_LINES: dict[bool, tuple[str, ...]] = {
    False: (
        'turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]',
        "score = model(tokenizer.apply_chat_template(turns, return_tensors='pt', "
        "return_dict=False)).logits[0, 0] + model.config.score_bias",
    ),
    # a base's own template may add text after eos, and training scored eos
    True: (
        'prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], '
        "tokenize=False, add_generation_prompt=True)",
        'ids = tokenizer(prompt + "Hello." + tokenizer.eos_token, add_special_tokens=False, '
        "return_tensors='pt').input_ids",
        "score = model(ids).logits[0, 0] + model.config.score_bias",
    ),
}
"""Lines that score a reply; True where the chat template is the tokenizer's own."""


def model_card(
    request: ExportRequest,
    report: Mapping[str, Any] | None,
    ledger: Mapping[str, Any],
    checks: Mapping[str, Parity],
    licence_files: Sequence[str],
) -> str:
    """Write the text of `README.md`.

    Args:
        request: The request for the export.
        report: The run's `report.json`.
        ledger: The run's finished stages.
        checks: Results of the parity checks, by name.
        licence_files: Names of the licence files copied from the base.
    """
    settings = request.settings
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
    if licence_files:
        duty_lines.append(f"Copied from the base: {', '.join(licence_files)}.")
    duty_lines.append(
        "The licences of the training data hold too: answers written by OpenAI's models, as "
        "Alpaca's are (CC BY-NC 4.0), may not be used to compete with them."
    )
    return (
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n\n# {request.name}\n{warning}\n"
        f"{_description(request)}\n\n## Load it\n\n{_load(request)}\n\n{_prompts(request)}\n\n"
        f"## Checked\n\n{check_lines}\n\n## How it was made\n\n{_stages(request, ledger)}\n\n"
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


def _load(request: ExportRequest) -> str:
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
            *_SCORING_LINES[request.settings.template == "chat"],
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
        number = request.policy.partition(".")[2] or "1"
        reward_models = [
            reward_model
            for reward_model in report["reward_models"]
            if str(reward_model["round"]) == number
        ]
        figures = reward_models[0] if reward_models else {}
    else:
        figures = report["policies"].get(request.policy, {})
    names = _REWARD if request.target == "reward" else _POLICY
    if not figures:
        return "The run's report has no figures for it."
    rows = ["| | |", "|---|---|"]
    rows += [
        f"| {label} | {_number(figures[key])} |"
        for key, label in names
        if figures.get(key) is not None
    ]
    judge = report.get("judge", "gold")
    temperature = report.get("temperatures", {}).get("evaluate", 1.0)
    note = f"On prompts that no stage has seen, at temperature {temperature:g}; judge: {judge}."
    measured = report.get("judge_accuracy")
    if measured is not None:
        note += f" Its accuracy: {measured['accuracy']:.3f} on {measured['pairs']} pairs."
    return "\n".join([*rows, "", note])


def _number(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(_number(number) for number in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
