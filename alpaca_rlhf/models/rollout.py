"""Sampling of completions with our own decode loop.

The prompt is read once for all K samples, waiting prompts take the places of finished rows, and no
logits are kept.
The noise of a token is a function of (seed, prompt, sample, position) alone, so neither batching
nor finished rows change a completion.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import left_pad
from alpaca_rlhf.models.decode_graph import captured
from alpaca_rlhf.models.devices import exact_dtype
from alpaca_rlhf.models.kv_cache import BlockCache
from alpaca_rlhf.models.logit_shaping import UNSHAPED, LogitShaping
from alpaca_rlhf.models.oom_retry import shrink_on_oom
from alpaca_rlhf.settings import Sampling

READ_EVERY = 16
"""Steps that an accelerator takes before the host reads the tokens: each look waits for it."""
LEAVING = 8
"""One in so many rows has ended before the batch is rearranged."""


@dataclass(frozen=True)
class SampledCompletion:
    """One sampled completion."""

    ids: tuple[int, ...]
    """Completion tokens, the stop token included."""
    finished: bool
    """True if it ended with a stop token."""


@dataclass(frozen=True)
class Token:
    """One token of a completion, as soon as it is drawn."""

    row: int
    """Index of the completion."""
    id: int
    """Token id."""
    ends: bool
    """True for a stop token, which is the last of its row."""


@torch.no_grad()
def sample(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[SampledCompletion]]:
    """Sample K completions of each prompt.

    Args:
        adapters: Adapters on the base.
        role: Adapter that samples; None is the bare base.
        prompts: Token ids of each prompt.
        keys: Name of each prompt's noise: the same key draws the same noise.
        k: Completions a prompt.
        sampling: Temperature, top-p, length, batch size.
        seed: Seed of the noise.
        on_batch: Called with the number of completions of the prompts that are done since.

    Returns:
        K completions of each prompt, in the order of the prompts.
    """
    _refuse_train_mode(adapters)
    completions: dict[int, list[SampledCompletion]] = {}
    read_every = 1 if adapters.base.device.type == "cpu" else READ_EVERY

    def decode(prompts_at_once: int) -> None:
        # Where memory ran out before, the prompts that are done stay done.
        waiting = [i for i in range(len(prompts)) if i not in completions]
        requests = [(prompts[i], keys[i]) for i in waiting]
        ids: list[list[int]] = [[] for _ in range(len(waiting) * k)]
        finished = [False] * len(ids)
        unfinished = [k] * len(waiting)
        for tokens in _decode_steps(
            adapters, requests, k, sampling, seed, prompts_at_once, read_every
        ):
            done = 0
            for token in tokens:
                ids[token.row].append(token.id)
                finished[token.row] = token.ends
                if token.ends or len(ids[token.row]) == sampling.max_new_tokens:
                    n = token.row // k
                    unfinished[n] -= 1
                    if not unfinished[n]:
                        rows = range(n * k, (n + 1) * k)
                        completions[waiting[n]] = [
                            SampledCompletion(tuple(ids[row]), finished[row]) for row in rows
                        ]
                        done += k
            if done and on_batch is not None:
                on_batch(done)

    with adapters.using(role), adapters.decoding():
        at_once = min(len(prompts), max(1, sampling.batch_size // k))
        lower = "the number of completions or tokens"
        shrink_on_oom(at_once, decode, lower=lower)
    return [completions[i] for i in range(len(prompts))]


@torch.no_grad()
def stream(
    adapters: Adapters,
    role: str | None,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    *,
    k: int = 1,
    sampling: Sampling,
    seed: int,
    shaping: LogitShaping = UNSHAPED,
) -> Generator[list[Token], None, None]:
    """Sample as `sample` does, but yield token by token, all rows in one batch.

    Leave the loop, or close the iterator, to stop between two tokens. Until it has ended the
    adapters are in use and cannot be switched.

    Yields:
        The next token of each row that has not ended; rows are numbered prompt by prompt, sample
        by sample.
    """
    _refuse_train_mode(adapters)
    requests = list(zip(prompts, keys, strict=True))
    with adapters.using(role), adapters.decoding():
        yield from _decode_steps(
            adapters, requests, k, sampling, seed, len(prompts), 1, shaping=shaping
        )


def _refuse_train_mode(adapters: Adapters) -> None:
    if adapters.base.model.training:
        raise RuntimeError(
            "generation in train mode gives garbage under checkpointing; leave training() first"
        )


def _noises(seed: int, keys: Sequence[str], k: int, length: int) -> Tensor:
    """(B * K, length) float64 uniform numbers, prompt by prompt, sample by sample."""
    rows = [_noise(seed, key, j, length) for key in keys for j in range(k)]
    return torch.from_numpy(np.reshape(rows, (len(rows), length)))


def _noise(
    seed: int, key: str, sample_index: int, length: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    # Philox is counter-based: its stream depends on the key alone, on every machine.
    digest = hashlib.blake2b(f"{seed}/{key}/{sample_index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(
        length
    )


def steps_in_place(device: torch.device) -> bool:
    """True if a step works in place, so that it can be captured as a CUDA graph."""
    return device.type == "cuda"


class _Row:
    """One completion in the batch, as the host knows it."""

    def __init__(self, index: int, prompt_length: int) -> None:
        self.index = index
        self.prompt_length = prompt_length
        self.n_drawn = 0  # tokens so far, those after the stop token included
        self.ended = False


class _Batch:
    """Rows that are decoded together, each with its newest token, which is still to be read.

    Args:
        adapters: Within `using` and `decoding`.
        sampling: Temperature, top-p and length.
        limit: Tokens at most in a row, its prompt included.
        shaping: Changes the distribution that tokens are drawn from.
    """

    def __init__(
        self,
        adapters: Adapters,
        sampling: Sampling,
        limit: int,
        shaping: LogitShaping = UNSHAPED,
    ) -> None:
        self._adapters, self._sampling, self._shaping = adapters, sampling, shaping
        device = adapters.base.device
        self._cache = BlockCache(adapters.base.model.config, limit)
        self.rows: list[_Row] = []
        self._token_ids = torch.zeros(0, dtype=torch.int64, device=device)
        self._positions = torch.zeros(0, dtype=torch.int64, device=device)
        self._n_drawn = torch.zeros(0, dtype=torch.int64, device=device)
        noise_dtype = exact_dtype(device)
        self._noise = torch.zeros(0, sampling.max_new_tokens, dtype=noise_dtype, device=device)
        # Tokens of each row so far, kept only where a penalty on repetition asks for them.
        self._history: Tensor | None = None
        if shaping.repetition_penalty != 1:
            self._history = torch.zeros(0, 0, dtype=torch.int64, device=device)
        in_place = steps_in_place(device) and self._cache.in_place
        self._in_place = in_place and self._history is None  # a history grows
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._column = torch.zeros(1, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(0, READ_EVERY, dtype=torch.int64, device=device)
        self._is_warm = False
        self._repeat: Callable[[], None] | None = None
        self._can_capture = True

    def rearrange(
        self, prompts: Sequence[Sequence[int]], rows: list[_Row], k: int, noise: Tensor
    ) -> list[list[int]]:
        """Drop the rows that have ended, read prompts, and draw the first token of their rows.

        Args:
            prompts: Token ids of the prompts that join.
            rows: K rows of each.
            k: Rows a prompt.
            noise: (len(rows), max_new_tokens) uniform numbers in [0, 1).

        Returns:
            The first token of each new row.
        """
        base = self._adapters.base
        self._is_warm, self._repeat = False, None  # first of all: a graph holds memory of its own
        kept = [i for i, row in enumerate(self.rows) if not row.ended]
        kept_rows = torch.tensor(kept, dtype=torch.int64, device=base.device)
        self.rows = [self.rows[i] for i in kept] + rows
        width = max((row.prompt_length + max(row.n_drawn - 1, 0) for row in self.rows), default=0)
        token_ids, positions, n_drawn, noises = (
            state.index_select(0, kept_rows)
            for state in (self._token_ids, self._positions, self._n_drawn, self._noise)
        )
        arrivals = None
        if rows:
            # Prefill: each prompt is read once, padded on the left, for all its K rows.
            ids, mask = left_pad(base, prompts)
            arrivals = DynamicCache(config=base.model.config)
            at = (mask.long().cumsum(1) - 1).clamp_min(0)
            hidden = self._adapters.decode(ids, mask, at, arrivals)[:, -1]
            # Rounded to float32, a number may be 1, which lies beyond every token.
            below_1 = 1 - torch.finfo(self._noise.dtype).eps / 2
            noise = noise.to(self._noise.dtype).clamp_max(below_1).to(base.device)
            new_history = None if self._history is None else _padded(prompts, k, base.device)
            first = self._draw(hidden.repeat_interleave(k, 0), noise[:, 0], new_history)
            if new_history is not None:
                new_history = torch.cat([new_history, first[:, None]], 1)
                self._history = _stacked(self._history, kept_rows, new_history)
            token_ids = torch.cat([token_ids, first])
            positions = torch.cat([positions, at[:, -1].repeat_interleave(k) + 1])
            n_drawn = torch.cat([n_drawn, torch.ones_like(first)])
            noises = torch.cat([noises, noise])
        elif self._history is not None:
            self._history = self._history.index_select(0, kept_rows)
        self._token_ids, self._positions = token_ids, positions
        self._n_drawn, self._noise = n_drawn, noises
        if self.rows:
            self._cache.rearrange(kept_rows, width, arrivals, k)
        for row in rows:
            row.n_drawn = 1
        # A look at a tensor waits for the device, however small it is.
        return token_ids[len(kept) :, None].tolist() if rows else []

    def steps(self, count: int) -> list[list[int]]:
        """Take at most `READ_EVERY` steps, then look: `count` new tokens of each row."""
        for row in self.rows:
            row.n_drawn += count
        if not self._in_place:
            return torch.stack([self._step() for _ in range(count)], 1).tolist()
        # 1. Where the next token is written, and the first of the drawn.
        width = self._cache.get_seq_length()
        if len(self._drawn) != len(self.rows):
            self._drawn = self._drawn.new_zeros(len(self.rows), READ_EVERY)
        self._place.fill_(width)
        self._column.zero_()
        self._cache.write_at(self._place)
        try:
            # 2. The steps; the first on new tensors is a plain one, and the others repeat it.
            for _ in range(count):
                if self._cache.reserve(width + 1):
                    self._is_warm, self._repeat = False, None
                if not self._is_warm:
                    self._step_in_place()
                    self._is_warm = True
                else:
                    if self._repeat is None and self._can_capture:
                        self._repeat = captured(self._step_in_place, self._place.device)
                        self._can_capture = self._repeat is not None
                    (self._repeat or self._step_in_place)()
                width += 1
                self._cache.show(width)
        finally:
            self._cache.write_at(None)
        # 3. The look.
        return self._drawn[:, :count].tolist()

    def _step_in_place(self) -> None:
        """Take a step with tensors whose shapes and addresses stay; the host knows none of them."""
        columns = torch.arange(self._cache.room, device=self._place.device)
        first = self._place - self._positions[:, None]
        hidden_columns = (columns > self._place) | (columns < first)
        # What is added to the scores: of a mask of bools each layer would make it anew.
        dtype = self._adapters.base.dtype
        mask = torch.zeros(hidden_columns.shape, dtype=dtype, device=columns.device)
        mask = mask.masked_fill_(hidden_columns, -torch.inf)
        hidden = self._adapters.decode(
            self._token_ids[:, None], mask[:, None, None], self._positions[:, None], self._cache
        )[:, -1]
        uniform = self._noise.gather(1, self._n_drawn[:, None])[:, 0]
        self._token_ids.copy_(self._draw(hidden, uniform, None))
        self._drawn.index_copy_(1, self._column, self._token_ids[:, None])
        for counter in (self._positions, self._n_drawn, self._place, self._column):
            counter += 1

    def _step(self) -> Tensor:
        """Read each row's newest token and draw the next; (B,) int64 ids, on the device."""
        width = self._cache.get_seq_length() + 1
        columns = torch.arange(width, device=self._positions.device)
        mask = columns >= width - 1 - self._positions[:, None]
        hidden = self._adapters.decode(
            self._token_ids[:, None], mask, self._positions[:, None], self._cache
        )[:, -1]
        uniform = self._noise.gather(1, self._n_drawn[:, None])[:, 0]
        self._token_ids = self._draw(hidden, uniform, self._history)
        if self._history is not None:
            self._history = torch.cat([self._history, self._token_ids[:, None]], 1)
        self._positions = self._positions + 1
        self._n_drawn = self._n_drawn + 1
        return self._token_ids

    def _draw(self, hidden: Tensor, uniform: Tensor, history: Tensor | None) -> Tensor:
        logits = self._shaping.penalised(self._adapters.logits(hidden), history)
        return _pick(logits, self._sampling, uniform, self._shaping)


def _padded(prompts: Sequence[Sequence[int]], k: int, device: torch.device) -> Tensor:
    """Prompts (B * K, T) filled on the left with their own first token, which they hold anyway."""
    width = max(map(len, prompts))
    rows = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, dtype=torch.int64, device=device).repeat_interleave(k, 0)


def _stacked(history: Tensor | None, kept_rows: Tensor, new_rows: Tensor) -> Tensor:
    """Kept rows above new ones, the narrower filled on the left with tokens that they hold."""
    if history is None or not len(kept_rows):
        return new_rows
    parts = [history.index_select(0, kept_rows), new_rows]
    width = max(part.shape[1] for part in parts)
    filled = [torch.cat([part[:, :1].expand(-1, width - part.shape[1]), part], 1) for part in parts]
    return torch.cat(filled)


@torch.no_grad()
def _decode_steps(
    adapters: Adapters,
    requests: Sequence[tuple[Sequence[int], str]],
    k: int,
    sampling: Sampling,
    seed: int,
    prompts_at_once: int,
    read_every: int,
    *,
    shaping: LogitShaping = UNSHAPED,
) -> Iterator[list[Token]]:
    """Run the decode loop; yields the tokens that were drawn since the host last read them.

    Args:
        adapters: Within `using` and `decoding`.
        requests: Token ids of each prompt, and the name of its noise.
        k: Completions a prompt.
        sampling: Temperature, top-p and length.
        seed: Seed of the noise.
        prompts_at_once: The batch has K rows for each of so many prompts.
        read_every: Steps between two looks at the tokens.
        shaping: Changes the distribution that tokens are drawn from.
    """
    length, stop_ids = sampling.max_new_tokens, adapters.base.stop_ids
    lengths = [len(prompt) for prompt, _ in requests]
    # The longest prompts first: what does not fit into memory fails early.
    waiting = deque(sorted(range(len(requests)), key=lambda i: (-lengths[i], i)))
    batch = _Batch(adapters, sampling, max(lengths, default=0) + length - 1, shaping)

    def read(rows: Sequence[_Row], ids_of_rows: list[list[int]]) -> list[Token]:
        tokens = []
        for row, token_ids in zip(rows, ids_of_rows, strict=True):
            for token_id in token_ids:
                if not row.ended:
                    row.ended = token_id in stop_ids
                    tokens.append(Token(row.index, token_id, row.ended))
            row.ended |= row.n_drawn >= length
        return tokens

    while True:
        # 1. Rows that have ended leave, and waiting prompts take their places, several at once:
        #    each time costs a copy of the cache.
        ended = sum(row.ended for row in batch.rows)
        overdue = any(row.n_drawn >= length for row in batch.rows)
        if overdue or ended * LEAVING >= len(batch.rows):
            free = prompts_at_once - -(-(len(batch.rows) - ended) // k)
            joining = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            rows = [_Row(i * k + j, lengths[i]) for i in joining for j in range(k)]
            prompts, keys = [requests[i][0] for i in joining], [requests[i][1] for i in joining]
            first = batch.rearrange(prompts, rows, k, _noises(seed, keys, k, length))
            if not batch.rows:
                return
            if rows:
                yield read(rows, first)
                continue
        # 2. Some steps without a look at what was drawn, until a row is as long as it may be.
        steps = min(read_every, length - max(row.n_drawn for row in batch.rows))
        # 3. Read the tokens.
        yield read(batch.rows, batch.steps(steps))


def _pick(
    logits: Tensor, sampling: Sampling, uniform: Tensor, shaping: LogitShaping = UNSHAPED
) -> Tensor:
    """Sample (B,) token ids from (B, V) logits by inverting their CDF at (B,) uniform numbers."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(shaping.likeliest(logits / sampling.temperature), -1)
    if sampling.top_p < 1:
        # Nucleus: the most likely tokens until their sum reaches top-p; never none.
        descending, order = probabilities.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= sampling.top_p
        probabilities = probabilities.scatter(-1, order, descending.masked_fill(outside, 0))
    probabilities = shaping.without_unlikely(probabilities)
    cumulative = probabilities.to(uniform.dtype).cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]  # not normalised: scale the number instead
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
