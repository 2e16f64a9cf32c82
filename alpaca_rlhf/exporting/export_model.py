"""An export from beginning to end: write, read again with others' code, compare, describe."""

from __future__ import annotations

import gc
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2, is_gguf
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import json_text, new_folder
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.exporting import (
    converter,
    gguf_file,
    parity,
    placing,
    quantize,
    reward_model,
    sentencepiece_model,
    shards,
    tokenizer,
)
from alpaca_rlhf.exporting.licences import copy_files
from alpaca_rlhf.exporting.loading import trained
from alpaca_rlhf.exporting.model_card import WrittenExport, model_card
from alpaca_rlhf.exporting.ollama import modelfile, ollama_template
from alpaca_rlhf.exporting.parity import Parity, Reference
from alpaca_rlhf.exporting.probes import PROBES, prompts_of_run
from alpaca_rlhf.exporting.request import (
    DTYPES,
    ExportRequest,
    check_disk,
    configuration,
    count_weights,
)
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, base_source, compute_in, nf4_options
from alpaca_rlhf.models.batches import prompt_ids
from alpaca_rlhf.models.heads import EnsembleHead, ScalarHead
from alpaca_rlhf.models.merging import Weight, merged
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.stages.context import Reporter

PARITY = "parity.json"
FAILED = "PARITY_FAILED"
"""File that marks an export whose outputs differ from the trained model's."""

_ROLE = "policy"
_UNREAD = ("rope_parameters", "head_dim", "query_pre_attn_scalar")
"""Settings that transformers' reader of GGUF ignores, for some family or all."""


def export_model(
    request: ExportRequest,
    reporter: Reporter,
    *,
    report: Mapping[str, Any] | None = None,
    ledger: Mapping[str, Any] | None = None,
    answers: Sequence[dict[str, object]] = (),
) -> dict[str, Parity]:
    """Export a model and check it.

    Args:
        request: The adapter to export, and its target.
        reporter: Shows progress.
        report: The run's `report.json`, for the model card.
        ledger: The run's finished stages, for the model card.
        answers: The run's `answers.jsonl`, whose prompts are checked too.

    Returns:
        The result of each check. Where one failed the folder stays, marked as failed.

    Raises:
        UserError: Anything that the user can mend; nothing is left behind then.
    """
    # 1. Refuse what cannot succeed before anything is written.
    config = None if request.target == "adapter" else configuration(request.settings.base)
    if request.target == "gguf":
        gguf_file.need_gguf()
        if quantize.is_k_quant(request.dtype):
            _quantizer(request)
        if request.llama_cpp is None:
            gguf_file.check_architecture(config, request.settings.base)
        else:
            converter.script(request.llama_cpp)

    with new_folder(request.out) as folder:
        check_disk(request, config)

        # 2. Write the weights, read them again with others' code, and compare.
        reporter.start("export", f"{request.policy} of {request.run} to {request.out}")
        job = _Export(request, folder, config, (*PROBES, *prompts_of_run(answers)), reporter)
        checks: dict[str, Parity] = getattr(job, request.target)()

        # 3. Describe the result: licence files, model card, parity.
        licences = copy_files(request.settings.base, folder)
        scoring = tokenizer.read(folder) if request.target == "reward" else None
        written = WrittenExport(checks, licences, scoring)
        card = model_card(request, report, ledger or {}, written)
        _write(folder / "README.md", card)
        passed = all(check.passed for check in checks.values())
        facts = {name: {"passed": check.passed, **check.facts} for name, check in checks.items()}
        summary = {"schema": 1, "passed": passed, "to": request.target, "dtype": request.dtype}
        _write(folder / PARITY, json_text({**summary, "checks": facts}, PARITY, indent=2) + "\n")
        if not passed:
            lines = [f"{name}: {check.line}" for name, check in checks.items() if not check.passed]
            _write(folder / FAILED, "\n".join(lines) + "\n")
    reporter.finish("export", f"written to {request.out}")
    return checks


_NO_MODELFILE = Parity(
    True,
    "there is no Modelfile, since Ollama would need a file tokenizer.model, which the base lacks; "
    "`--to gguf` writes a file for it",
    {"compared": False},
)
"""The result for a merged model whose tokenizer Ollama could not read."""


@dataclass(frozen=True)
class _Export:
    """An export in progress. The method named like its target writes it and returns the checks."""

    request: ExportRequest
    folder: Path
    """Folder to fill."""
    config: Any
    """Configuration of the base; None for an adapter."""
    prompts: Sequence[Instruction]
    """Prompts to compare with."""
    reporter: Reporter

    @property
    def _template(self) -> str:
        return self.request.settings.template

    def adapter(self) -> dict[str, Parity]:
        """Copy the adapter beside a tokenizer, and compare it in plain peft."""
        # 1. The trained policy's outputs.
        base, adapters = trained(self.request, _ROLE)
        references = self._references(adapters)

        # 2. Adapter files, naming the base, and the tokenizer.
        for path in sorted(self.request.adapter.iterdir()):
            if path.is_file():
                shutil.copyfile(path, self.folder / path.name)
        config_path = self.folder / "adapter_config.json"
        adapter_config = json.loads(config_path.read_text(encoding="utf-8"))
        if self.request.settings.base != EMBEDDED:
            name = self.request.settings.base
            made_here = name == SMOLLM2 or is_gguf(name)
            adapter_config["base_model_name_or_path"] = base_source(name) if made_here else name
        _write(config_path, json.dumps(adapter_config, indent=2, sort_keys=True) + "\n")
        tokenizer.save(tokenizer.exported_tokenizer(base, self._template), self.folder)
        ids = self._check_ids(base)

        # 3. Free the base, and load the export as anybody else would.
        dtype, stored, device = base.dtype, base.quantized_from or base.dtype, base.device
        stops = sorted(base.stop_ids)
        del base, adapters
        _free_memory()
        source = base_source(self.request.settings.base)
        options = {"dtype": stored, **nf4_options(source, torch.float32)}
        if device.type == "cuda":
            options["device_map"] = {"": device}
        plain = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **options)
        compute_in(plain, dtype)  # embeddings, norms and head are rounded as in training
        model: Any = PeftModel.from_pretrained(plain, str(self.folder))
        compute_in(model, torch.float32)
        model.eval()
        check = parity.compare(model, references, stops, self._progress("plain peft"), exact=True)
        return {"template": ids, "peft": check}

    def merged(self) -> dict[str, Parity]:
        """Write a merged checkpoint, and compare it in plain transformers."""
        # 1. The trained policy's outputs.
        base, adapters = trained(self.request, _ROLE)
        references = self._references(adapters)

        # 2. The checkpoint, and a Modelfile where Ollama would read the tokenizer correctly.
        dtype = DTYPES[self.request.dtype]
        file = self._write_merged(self.folder, base, adapters, dtype)
        exported = tokenizer.read(self.folder)
        checks = {"template": self._check_ids(base), "file": file}
        if sentencepiece_model.copy_model(self.request.settings.base, exported, self.folder):
            checks["ollama"] = self._write_modelfile(exported, ".", base.stop_ids)
        else:
            checks["ollama"] = _NO_MODELFILE

        # 3. Free the base, and load the export as anybody else would.
        device, stops = base.device, sorted(base.stop_ids)
        del base, adapters
        _free_memory()
        with TemporaryDirectory() as offload:
            options = placing.dealt_out(device, Path(offload))
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(self.folder), dtype=dtype, **options
            )
            exact, progress = dtype == torch.float32, self._progress("plain transformers")
            check = parity.compare(model.eval(), references, stops, progress, exact=exact)
        return {**checks, "transformers": check}

    def reward(self) -> dict[str, Parity]:
        """Write a sequence classifier with one label, and compare it in plain transformers.

        Of several heads it is their mean, which is a linear head too.
        """
        # 1. The trained reward model's scores.
        base, adapters = trained(self.request, _ROLE)
        trained_head = ScalarHead.load(self.request.adapter, int(self.config.hidden_size))
        head = trained_head.mean.to(base.device)
        if isinstance(trained_head, EnsembleHead):
            self.reporter.say(f"{self.request.policy}: {reward_model.of_heads(trained_head)}")
        examples = reward_model.scored_examples(base, self._template, self.prompts)
        scores = score(adapters, _ROLE, head, examples, batch_size=4)

        # 2. Weights with the head, configuration and tokenizer with a padding token.
        exported = tokenizer.exported_tokenizer(base, self._template)
        reward_model.with_padding(exported, self.config, base)
        dtype = DTYPES[self.request.dtype]
        weights = reward_model.reward_weights(adapters, _ROLE, head, int(self.config.vocab_size))
        file = self._write_weights(self.folder, weights, dtype)
        reward_model.classifier_config(self.config, head)
        self._save_config(dtype, self.folder)
        tokenizer.save(exported, self.folder)
        ids = self._check_ids(base)

        # 3. Free the base, and load the export as anybody else would.
        device = base.device
        del base, adapters, weights
        _free_memory()
        with TemporaryDirectory() as offload:
            options = placing.dealt_out(device, Path(offload))
            model, bias = reward_model.read_classifier(self.folder, dtype, options)
            check = parity.compare_scores(model, bias, examples, scores, dtype)
        return {"template": ids, "file": file, "transformers": check}

    def gguf(self) -> dict[str, Parity]:
        """Write a GGUF file with a Modelfile, and compare it in transformers' reader of GGUF."""
        # 1. The trained policy's outputs.
        base, adapters = trained(self.request, _ROLE)
        references = self._references(adapters)

        # 2. The file, by our writer or by llama.cpp's converter.
        kind = gguf_file.KINDS[self.request.written_dtype]
        path = self.folder / f"model-{kind.lower()}.gguf"
        exported = tokenizer.exported_tokenizer(base, self._template)
        checks: dict[str, Parity] = {}
        if self.request.llama_cpp is None:
            model_to_write = gguf_file.GGUFModel(
                list(merged(adapters.base, _ROLE)),
                self.config,
                exported,
                self.request.name,
                self.request.settings.base,
            )
            gguf_file.write_gguf(path, model_to_write, kind, progress=self._progress("weights"))
            del model_to_write
        else:
            checks["file"] = self._convert(self.request.llama_cpp, base, adapters, exported, path)
        if quantize.is_k_quant(self.request.dtype):
            path = self._quantize(path)
        stops = sorted(base.stop_ids)
        checks["ollama"] = self._write_modelfile(exported, f"./{path.name}", base.stop_ids)

        # 3. Free the base, and read the file where it fits in one piece.
        device = base.device
        del base, adapters
        _free_memory()
        half = torch.bfloat16 if self.request.dtype == "bfloat16" else torch.float16
        place = placing.whole(count_weights(self.config), half, device)
        if place is None:
            checks["transformers"] = parity.NOT_COMPARED
            return checks
        config: Any = AutoConfig.from_pretrained(str(self.folder), gguf_file=path.name)
        for name in _UNREAD:
            if hasattr(self.config, name):
                setattr(config, name, getattr(self.config, name))
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(self.folder), gguf_file=path.name, config=config, dtype=place[1]
            )
        model.to(place[0]).eval()
        exact = self.request.dtype == "float32" and place[1] == torch.float32
        progress = self._progress("transformers' reader of GGUF")
        checks["transformers"] = parity.compare(
            model,
            references,
            stops,
            progress,
            exact=exact,
            limits=parity.LIMITS.get(self.request.dtype, parity.SIXTEEN_BIT),
        )
        return checks

    # --- steps ------------------------------------------------------------------------------------

    def _references(self, adapters: Adapters) -> list[Reference]:
        prompts = [prompt_ids(adapters.base, adapters.template, row) for row in self.prompts]
        progress = self._progress("what was trained")
        return parity.references(adapters, _ROLE, prompts, progress=progress)

    def _convert(
        self, llama_cpp: Path, base: Base, adapters: Adapters, exported: Any, path: Path
    ) -> Parity:
        """Write a merged model for llama.cpp's converter, convert it, and delete it."""
        intermediate = self.folder / "merged"
        intermediate.mkdir()
        base_name = self.request.settings.base
        if not sentencepiece_model.copy_model(base_name, exported, intermediate):
            raise UserError(
                f"--llama-cpp {llama_cpp}: its converter needs tokenizer.model, which "
                f"--base {base_name} lacks, and would cut text into other tokens; put "
                "it there, or leave --llama-cpp out"
            )
        file = self._write_merged(intermediate, base, adapters, torch.float32)
        converter.convert(llama_cpp, intermediate, path, self.request.written_dtype)
        shutil.rmtree(intermediate)
        return file

    def _quantize(self, path: Path) -> Path:
        """Make a K-quant of the file, in its place."""
        target = self.folder / f"model-{self.request.dtype}.gguf"
        quantize.quantize(_quantizer(self.request), path, target, self.request.dtype)
        return target

    def _write_merged(
        self, folder: Path, base: Base, adapters: Adapters, dtype: torch.dtype
    ) -> Parity:
        """Write a checkpoint of transformers: weights, tokenizer, configuration, generation."""
        file = self._write_weights(folder, list(merged(adapters.base, _ROLE)), dtype)
        exported = tokenizer.exported_tokenizer(base, self._template)
        vocabulary = int(self.config.vocab_size)
        pad = tokenizer.spare_pad(exported, base.stop_ids, vocabulary)
        if pad is None and (exported.pad_token_id or 0) >= vocabulary:
            pad = base.pad_id  # the tokenizer's own has no embedding
        if pad is not None:
            exported.pad_token = exported.convert_ids_to_tokens(pad)
        exported.padding_side = "left"
        tokenizer.save(exported, folder)
        self._save_config(dtype, folder)
        stops = sorted(base.stop_ids)
        generation = GenerationConfig(  # type: ignore[no-untyped-call]
            bos_token_id=exported.bos_token_id,
            eos_token_id=stops if len(stops) > 1 else stops[0],
            pad_token_id=base.pad_id if pad is None else pad,
        )
        generation.save_pretrained(str(folder))
        return file

    def _write_weights(self, folder: Path, weights: Sequence[Weight], dtype: torch.dtype) -> Parity:
        """Write weights as safetensors, and check that the files hold them bit for bit."""
        progress = self._progress("weights")
        shards.write_shards(folder, weights, dtype, progress=progress)
        different = shards.first_difference(folder, weights, dtype, progress=progress)
        if different is None:
            return Parity(True, "the file holds what was merged, bit for bit", {})
        return Parity(False, f"{different} is not what was merged", {"different": different})

    def _check_ids(self, base: Base) -> Parity:
        """Check that the saved chat template gives the token ids of training."""
        ids = tokenizer.compare(base, self._template, tokenizer.read(self.folder))
        line = (
            f"the chat template gives training's token ids for {ids.lone_same} of {ids.lone} lone "
            f"prompts and {ids.conversations_same} of {ids.conversations} conversations"
        )
        return Parity(ids.good, line, dict(vars(ids)))

    def _write_modelfile(self, exported: Any, model: str, stop_ids: frozenset[int]) -> Parity:
        """Write a Modelfile, and say how far its template is that of the tokenizer."""
        template = ollama_template(exported)
        _write(self.folder / "Modelfile", modelfile(exported, model, stop_ids))
        facts = {"compared": template.text is not None, "exact": template.exact}
        return Parity(True, template.line, facts)

    def _save_config(self, dtype: torch.dtype, folder: Path) -> None:
        self.config.dtype = dtype
        self.config.save_pretrained(str(folder))

    def _progress(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.reporter.step(name, done, total, {})


def _quantizer(request: ExportRequest) -> Path:
    return quantize.program(
        request.llama_cpp, request.dtype, request.unquantized_command, request.out
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
