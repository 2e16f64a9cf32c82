"""An export from beginning to end: write, read again with others' code, compare, describe."""

from __future__ import annotations

import gc
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
)

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import json_text, new_folder
from alpaca_rlhf.exporting import (
    converter,
    gguf_file,
    parity,
    placing,
    reward_model,
    sentencepiece_model,
    shards,
    tokenizer,
)
from alpaca_rlhf.exporting.card import card
from alpaca_rlhf.exporting.licences import copy_files
from alpaca_rlhf.exporting.loading import trained
from alpaca_rlhf.exporting.ollama import modelfile
from alpaca_rlhf.exporting.parity import Parity, Reference
from alpaca_rlhf.exporting.probes import PROBES, of_run
from alpaca_rlhf.exporting.request import DTYPES, Request, check_disk, configuration, weights_of
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, base_source
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.merging import as_float32, merged
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.stages.context import Reporter

PARITY = "parity.json"
FAILED = "PARITY_FAILED"
"""A file that marks an export which does not do what was trained."""

_ROLE = "policy"


def export(
    request: Request,
    reporter: Reporter,
    *,
    report: Mapping[str, Any] | None = None,
    ledger: Mapping[str, Any] | None = None,
    answers: Sequence[dict[str, object]] = (),
) -> dict[str, Parity]:
    """Make an export and check it.

    Args:
        request: What is wanted.
        reporter: Shows progress.
        report: The run's `report.json`, for the card.
        ledger: The run's finished stages, for the card.
        answers: The run's `answers.jsonl`, whose prompts are checked too.

    Returns:
        What each check found. Where one failed the folder stays, marked as failed.

    Raises:
        UserError: Anything that the user can mend; nothing is left then.
    """
    config = None if request.target == "adapter" else configuration(request.settings.base)
    if request.target == "gguf":
        gguf_file.need_gguf()
        if request.llama_cpp is None:
            gguf_file.check_architecture(config, request.settings.base)
        else:
            converter.script(request.llama_cpp)
    with new_folder(request.out) as folder:
        check_disk(request, config)
        reporter.start("export", f"{request.policy} of {request.run} to {request.out}")
        body = {"adapter": _adapter, "merged": _merged, "reward": _reward, "gguf": _gguf}
        rows = [*PROBES, *of_run(answers)]
        found = body[request.target](request, folder, config, rows, reporter)
        licences = copy_files(request.settings.base, folder)
        _write(folder / "README.md", card(request, report, ledger or {}, found, licences))
        passed = all(one.passed for one in found.values())
        facts = {name: {"passed": one.passed, **one.facts} for name, one in found.items()}
        summary = {"schema": 1, "passed": passed, "to": request.target, "dtype": request.dtype}
        _write(folder / PARITY, json_text({**summary, "checks": facts}, PARITY, indent=2) + "\n")
        if not passed:
            failed = [f"{name}: {one.line}" for name, one in found.items() if not one.passed]
            _write(folder / FAILED, "\n".join(failed) + "\n")
    reporter.finish("export", f"written to {request.out}")
    return found


def _adapter(
    request: Request, folder: Path, config: Any, rows: Sequence[Any], reporter: Reporter
) -> dict[str, Parity]:
    base, adapters = trained(request, _ROLE)
    found = _references(adapters, rows, reporter)
    for path in sorted(request.adapter.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    own = folder / "adapter_config.json"
    facts = json.loads(own.read_text(encoding="utf-8"))
    if request.settings.base != "embedded":
        facts["base_model_name_or_path"] = request.settings.base
    _write(own, json.dumps(facts, indent=2, sort_keys=True) + "\n")
    words = tokenizer.exported_tokenizer(base, request.settings.template)
    tokenizer.save(words, folder)
    ids = _ids(base, request, folder)
    dtype, device = base.dtype, base.device
    stops = sorted(base.stop_ids)
    del base, adapters
    _free()
    four = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    source = base_source(request.settings.base)
    options: dict[str, Any] = {"quantization_config": four, "dtype": dtype}
    if device.type == "cuda":
        options["device_map"] = {"": device}
    plain = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options)
    model = PeftModel.from_pretrained(plain, str(folder))
    as_float32(model)
    model.eval()
    check = parity.compare(
        model, found, exact=True, stop_ids=stops, progress=_told(reporter, "plain peft")
    )
    return {"template": ids, "peft": check}


def _merged(
    request: Request, folder: Path, config: Any, rows: Sequence[Any], reporter: Reporter
) -> dict[str, Parity]:
    base, adapters = trained(request, _ROLE)
    found = _references(adapters, rows, reporter)
    dtype = DTYPES[request.dtype]
    file = _write_merged(request, folder, config, base, adapters, dtype, reporter)
    words = tokenizer.read(folder)
    if sentencepiece_model.copy_model(request.settings.base, words, folder):
        _write(folder / "Modelfile", modelfile(words, ".", sorted(base.stop_ids)))
    ids = _ids(base, request, folder)
    device, stops = base.device, sorted(base.stop_ids)
    del base, adapters
    _free()
    with TemporaryDirectory() as offload:
        options = placing.dealt_out(device, Path(offload))
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, **options)
        check = parity.compare(
            model.eval(),
            found,
            exact=dtype == torch.float32,
            stop_ids=stops,
            progress=_told(reporter, "plain transformers"),
        )
    return {"template": ids, "file": file, "transformers": check}


def _reward(
    request: Request, folder: Path, config: Any, rows: Sequence[Any], reporter: Reporter
) -> dict[str, Parity]:
    base, adapters = trained(request, _ROLE)
    head = ScalarHead.load(request.adapter, int(config.hidden_size)).to(base.device)
    examples = reward_model.scored_examples(base, request.settings.template, rows)
    scores = score(adapters, _ROLE, head, examples, batch_size=4)
    words = tokenizer.exported_tokenizer(base, request.settings.template)
    reward_model.with_padding(words, config, base)
    dtype = DTYPES[request.dtype]
    weights = reward_model.reward_weights(adapters, _ROLE, head, int(config.vocab_size))
    told = _told(reporter, "weights")
    shards.write_shards(folder, weights, dtype, progress=told)
    file = _file_check(shards.first_difference(folder, weights, dtype, progress=told))
    reward_model.classifier_config(config, head)
    _save_config(config, dtype, folder)
    tokenizer.save(words, folder)
    ids = _ids(base, request, folder)
    device = base.device
    del base, adapters, weights
    _free()
    with TemporaryDirectory() as offload:
        options = placing.dealt_out(device, Path(offload))
        model, bias = reward_model.read_classifier(folder, dtype, options)
        check = parity.compare_scores(model, bias, examples, scores, dtype)
    return {"template": ids, "file": file, "transformers": check}


def _gguf(
    request: Request, folder: Path, config: Any, rows: Sequence[Any], reporter: Reporter
) -> dict[str, Parity]:
    base, adapters = trained(request, _ROLE)
    found = _references(adapters, rows, reporter)
    kind = gguf_file.KINDS[request.dtype]
    path = folder / f"model-{kind.lower()}.gguf"
    words = tokenizer.exported_tokenizer(base, request.settings.template)
    checks: dict[str, Parity] = {}
    if request.llama_cpp is None:
        weights = list(merged(adapters.base, _ROLE))
        gguf_file.write_gguf(
            path,
            weights,
            config,
            words,
            kind=kind,
            name=request.name,
            base=request.settings.base,
            progress=_told(reporter, "weights"),
        )
        del weights
    else:
        middle = folder / "merged"
        middle.mkdir()
        if not sentencepiece_model.copy_model(request.settings.base, words, middle):
            raise UserError(
                f"--llama-cpp {request.llama_cpp}: its converter needs tokenizer.model, which "
                f"--base {request.settings.base} lacks, and would cut text into other tokens; put "
                "it there, or leave --llama-cpp out"
            )
        checks["file"] = _write_merged(
            request, middle, config, base, adapters, torch.float32, reporter
        )
        converter.convert(request.llama_cpp, middle, path, request.dtype)
        shutil.rmtree(middle)
    _write(folder / "Modelfile", modelfile(words, f"./{path.name}", sorted(base.stop_ids)))
    device, stops = base.device, sorted(base.stop_ids)
    del base, adapters
    _free()
    half = torch.bfloat16 if request.dtype == "bfloat16" else torch.float16
    place = placing.whole(weights_of(config), half, device)
    if place is None:
        checks["transformers"] = parity.NOT_COMPARED
        return checks
    read: Any = AutoConfig.from_pretrained(str(folder), gguf_file=path.name)
    read.rope_parameters = config.rope_parameters  # transformers does not read its scaling
    with redirect_stderr(io.StringIO()):  # its bar asks nobody whether it may be shown
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), gguf_file=path.name, config=read, dtype=place[1]
        )
    model.to(place[0]).eval()
    checks["transformers"] = parity.compare(
        model,
        found,
        exact=request.dtype == "float32" and place[1] == torch.float32,
        stop_ids=stops,
        progress=_told(reporter, "transformers' reader of GGUF"),
    )
    return checks


def _write_merged(
    request: Request,
    folder: Path,
    config: Any,
    base: Base,
    adapters: Adapters,
    dtype: torch.dtype,
    reporter: Reporter,
) -> Parity:
    weights = list(merged(adapters.base, _ROLE))
    told = _told(reporter, "weights")
    shards.write_shards(folder, weights, dtype, progress=told)
    words = tokenizer.exported_tokenizer(base, request.settings.template)
    rows = int(config.vocab_size)
    pad = tokenizer.spare_pad(words, base.stop_ids, rows)
    if pad is None and (words.pad_token_id or 0) >= rows:
        pad = base.pad_id
    if pad is not None:
        words.pad_token = words.convert_ids_to_tokens(pad)
    words.padding_side = "left"
    tokenizer.save(words, folder)
    _save_config(config, dtype, folder)
    stops = sorted(base.stop_ids)
    ends = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=words.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=base.pad_id if pad is None else pad,
    )
    ends.save_pretrained(str(folder))
    return _file_check(shards.first_difference(folder, weights, dtype, progress=told))


def _references(adapters: Adapters, rows: Sequence[Any], reporter: Reporter) -> list[Reference]:
    prompts = [prompt_ids(adapters.base, adapters.template, row) for row in rows]
    told = _told(reporter, "what was trained")
    return parity.references(adapters, _ROLE, prompts, progress=told)


def _ids(base: Base, request: Request, folder: Path) -> Parity:
    """Whether the chat template, read again, gives the ids of training."""
    found = tokenizer.compare(base, request.settings.template, tokenizer.read(folder))
    line = (
        f"the chat template gives training's token ids for {found.lone_same} of {found.lone} lone "
        f"prompts and {found.conversations_same} of {found.conversations} conversations"
    )
    return Parity(found.good, line, dict(vars(found)))


def _file_check(different: str | None) -> Parity:
    if different is None:
        return Parity(True, "the file holds what was merged, bit for bit", {})
    return Parity(False, f"{different} is not what was merged", {"different": different})


def _save_config(config: Any, dtype: torch.dtype, folder: Path) -> None:
    config.dtype = dtype
    config.save_pretrained(str(folder))


def _told(reporter: Reporter, what: str) -> Any:
    return lambda done, total: reporter.step(what, done, total, {})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
