"""Memory of the decode loop: prompts are read into the cache, then one token at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from alpaca_rlhf.planner.layers import ADAPTERS, Layers
from alpaca_rlhf.planner.passes import CACHE, IDS, LOGITS, Pass
from alpaca_rlhf.planner.tape import Block

DENSE = "16-bit copy of the base"


@dataclass(frozen=True)
class Decode:
    """Completions that are sampled together."""

    prompts: int
    """Prompts read at once."""
    k: int
    """Completions of each prompt."""
    prompt: int
    """Tokens of the longest prompt."""
    new_tokens: int
    """Tokens of the longest completion."""
    padded: bool = True
    """The prompts differ in length, so a mask is needed."""
    top_p: bool = False
    """Nucleus sampling, which sorts the logits."""
    dense: bool = False
    """The 4-bit weights have a 16-bit copy."""

    @property
    def rows(self) -> int:
        """Completions in all."""
        return self.prompts * self.k


def make_ready(run: Pass, dense: bool) -> list[Block]:
    """Allocate what `models/dense.py` keeps for as long as a rollout lasts."""
    shape, width = run.shape, run.device.width
    copies = []
    if dense:
        copies.append(run.tape.new(shape.layers * shape.layer_weights * width, DENSE))
    if run.rank and width < 4:
        copies.append(run.tape.new(shape.adapter_weights(run.rank) * width, ADAPTERS))
    return copies


def decode(run: Pass, completions: Decode) -> None:
    """Read the prompts, repeat their cache K times, and take the last and largest step."""
    copies = make_ready(run, completions.dense)

    # 1. Prefill: one forward over all prompts fills the cache.
    cache = [[run.tape.new(0), run.tape.new(0)] for _ in range(run.shape.layers)]
    prefill = _Cached.over(run, completions, completions.prompts, completions.prompt)
    hidden = prefill.through(cache)

    # 2. Repeat each prompt's keys and values for its K completions.
    if completions.k > 1:
        for keys_and_values in cache:
            repeated = [run.tape.new(half.size * completions.k, CACHE) for half in keys_and_values]
            keys_and_values[:] = repeated
            del repeated
    _pick(run, completions)

    # 3. The last step, when the cache is fullest.
    past = completions.prompt + completions.new_tokens - 2
    step = _Cached.over(run, completions, completions.rows, 1, past)
    for keys_and_values in cache:
        keys_and_values[:] = [step.half(past + 1), step.half(past + 1)]
    hidden = step.through(cache)
    _pick(run, completions)
    del hidden, keys_and_values, cache, copies


def _pick(run: Pass, completions: Decode) -> None:
    """Allocate as `models.rollout._pick` does on (B, V) logits in fp32."""
    numbers, tape = completions.rows * run.shape.vocabulary, run.tape
    # 1. Logits in the compute dtype, then in fp32.
    raw = tape.new(numbers * run.device.width, LOGITS)
    logits = raw if run.device.width == 4 else tape.new(numbers * 4, LOGITS)
    del raw
    # 2. Divided by the temperature, then the softmax.
    tempered = tape.new(numbers * 4, LOGITS)
    probabilities = tape.new(numbers * 4, LOGITS)
    del tempered
    ordered = None
    if completions.top_p:
        # 3. Nucleus sampling sorts; each number comes with an index of 8 bytes.
        ordered = tape.new(numbers * (4 + 8), LOGITS)
        tape.new(numbers * (4 + 4 + 1), LOGITS)  # cumulative sums, and the mask of the tail
        masked = tape.new(numbers * (1 + 4), LOGITS)
        cut = tape.new(numbers * 4, LOGITS)
        probabilities = cut
        del masked, cut
    doubles = [tape.new(numbers * 8, LOGITS) for _ in range(2)]  # the draw is in float64
    del ordered, logits, probabilities, doubles


@dataclass
class _Cached(Layers):
    """Layers that extend a cache by rows of new tokens, padded on the left."""

    past: int = 0
    """Tokens of each row in the cache already."""
    padded: bool = True
    layer_index: int = 0
    cache: list[list[Block]] = field(default_factory=list)
    """Keys and values of each layer."""

    @classmethod
    def over(cls, run: Pass, completions: Decode, rows: int, length: int, past: int = 0) -> _Cached:
        """Build the layers for `rows` rows of `length` new tokens each."""
        return cls(
            run.tape,
            run.shape,
            run.device,
            run.rank,
            rows,
            length,
            learns=False,
            decoding=True,
            dense=completions.dense,
            past=past,
            padded=completions.padded,
        )

    def half(self, tokens: int) -> Block:
        """Allocate the keys, or the values, of `tokens` tokens of every row in one layer."""
        size = self.rows * tokens * self.shape.keys * self.device.width
        return self.tape.new(size, CACHE)

    def through(self, cache: list[list[Block]]) -> Block:
        """Allocate (B, T, H) last hidden states; extends the cache layer by layer."""
        self.cache = cache
        ids = self.tape.new(8 * (3 * self.tokens + self.rows * self.past), IDS)
        x = self.values(self.shape.hidden)
        mask = None
        if self.padded:
            # One mask is made from the other, and only one stays.
            masks = [self._cells(1) for _ in range(2)]
            mask = masks.pop()
            del masks
        kinds = 2 if self.shape.gemma else 1
        positions = [self.values(self.shape.head_size) for _ in range(2 * kinds)]
        for index in range(self.shape.layers):
            self.layer_index = index
            x = self.layer(x, False)
        out = self.norm(x, False)
        del ids, mask, positions
        return out

    def _cells(self, size: int) -> Block:
        """Allocate `size` bytes for every pair of a new token and a token that it may attend to."""
        return self.tape.new(self.tokens * (self.past + self.length) * size, IDS)

    def attention(self, x: Block, saves: bool) -> Block:
        """Allocate the attention of the new tokens to all tokens so far."""
        s, total = self.shape, self.past + self.length
        # 1. Project, and rotate queries and keys.
        q = self.linear(x, s.hidden, s.queries, saves)
        q = self._head_norm(q, s.queries, s.heads, saves)
        k = self.linear(x, s.hidden, s.keys, saves)
        k = self._head_norm(k, s.keys, s.kv_heads, saves)
        v = self.linear(x, s.hidden, s.keys, saves)
        rotated = self._rotated(q, s.queries), self._rotated(k, s.keys)
        q, k = rotated
        del rotated
        # 2. A prompt's keys and values become the cache; a step has room for its own there.
        for index in range(2 if self.past == 0 else 0):
            self.cache[self.layer_index][index] = self.half(total)
        del k, v
        # 3. A padded prefill repeats keys and values for every query head of their group.
        repeated: list[Block] = []
        if self.padded and self.length > 1 and s.kv_heads != s.heads:
            expanded = self.rows * total * s.queries * self.device.width
            repeated = [self.tape.new(expanded) for _ in range(2)]
        # 4. The attention kernel and the output projection.
        bias = self._cells(self.device.width) if self.padded else None  # the mask as numbers
        scores = None
        if self.kernel == "math" and not self.padded and self.length > 1:
            # In fp32 before and after the softmax, whose rows without any key are sought.
            scores = self._cells(s.heads * (4 + 4 + 4 + 1))
        out = self.values(s.queries)
        sums = self.values(s.heads, 4)
        del sums, bias, scores, repeated, q
        return self.linear(out, s.queries, s.hidden, saves)
