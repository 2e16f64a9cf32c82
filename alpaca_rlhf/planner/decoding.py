"""What the decode loop takes: prompts read into the cache, then one token at a time."""

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
    """Completions of each."""
    prompt: int
    """Tokens of the longest prompt."""
    new: int
    """Tokens of the longest completion."""
    padded: bool = True
    """Whether the prompts differ in length, so that a mask is needed."""
    top_p: bool = False
    """Whether the logits are sorted."""

    @property
    def rows(self) -> int:
        """Completions in all."""
        return self.prompts * self.k


def ready(run: Pass, dense: bool) -> list[Block]:
    """What `models/dense.py` makes for as long as a rollout lasts."""
    shape, width = run.shape, run.device.width
    made = []
    if run.rank and dense:
        made.append(run.tape.new(shape.layers * shape.layer_weights * width, DENSE))
    if run.rank and width < 4:
        made.append(run.tape.new(shape.adapter_weights(run.rank) * width, ADAPTERS))
    return made


def decoded(run: Pass, decode: Decode, *, dense: bool) -> None:
    """Read the prompts, repeat their cache for K completions, take the last step."""
    made = ready(run, dense)
    cache = [[run.tape.new(0), run.tape.new(0)] for _ in range(run.shape.layers)]
    hidden = _Cached.over(run, decode, decode.prompts, decode.prompt, dense).through(cache)
    if decode.k > 1:
        for halves in cache:
            repeated = [run.tape.new(one.size * decode.k, CACHE) for one in halves]
            halves[:] = repeated
            del repeated
    _picked(run, decode)
    past = decode.prompt + decode.new - 2
    step = _Cached.over(run, decode, decode.rows, 1, dense, past=past)
    for halves in cache:
        halves[:] = [step.half(past), step.half(past)]
    hidden = step.through(cache)
    _picked(run, decode)
    del hidden, halves, cache, made


def _picked(run: Pass, decode: Decode) -> None:
    """`models.rollout._pick` on (B, V) logits in fp32."""
    numbers, tape = decode.rows * run.shape.vocabulary, run.tape
    raw = tape.new(numbers * run.device.width, LOGITS)
    logits = raw if run.device.width == 4 else tape.new(numbers * 4, LOGITS)
    del raw
    tempered = tape.new(numbers * 4, LOGITS)
    probabilities = tape.new(numbers * 4, LOGITS)
    del tempered
    if decode.top_p:
        ordered = tape.new(numbers * (4 + 8), LOGITS)
        tape.new(numbers * (4 + 4 + 1), LOGITS)  # running sums, and what lies outside
        masked = tape.new(numbers * (1 + 4), LOGITS)
        cut = tape.new(numbers * 4, LOGITS)
        probabilities = cut
        del masked, cut
        twice = [tape.new(numbers * 8, LOGITS) for _ in range(2)]
        del ordered
    else:
        twice = [tape.new(numbers * 8, LOGITS) for _ in range(2)]
    del logits, probabilities, twice


@dataclass
class _Cached(Layers):
    """Layers that extend a cache: rows of new tokens, padded on the left."""

    past: int = 0
    padded: bool = True
    turn: int = 0
    cache: list[list[Block]] = field(default_factory=list)

    @classmethod
    def over(
        cls, run: Pass, decode: Decode, rows: int, length: int, dense: bool, past: int = 0
    ) -> _Cached:
        """So many rows of so many new tokens each."""
        return cls(
            run.tape,
            run.shape,
            run.device,
            run.rank,
            rows,
            length,
            learns=False,
            decoding=True,
            dense=dense,
            past=past,
            padded=decode.padded,
        )

    def half(self, tokens: int) -> Block:
        """Keys, or values, of so many tokens of every row in one layer."""
        size = self.rows * tokens * self.shape.keys * self.device.width
        return self.tape.new(size, CACHE)

    def through(self, cache: list[list[Block]]) -> Block:
        """(B, T, H) last hidden states; extends the cache layer by layer."""
        self.cache = cache
        ids = self.tape.new(8 * (3 * self.tokens + self.rows * self.past), IDS)
        x = self.values(self.shape.hidden)
        mask = None
        if self.padded:
            parts = [self._cells(1) for _ in range(2)]
            mask = parts.pop()
            del parts
        positions = [self.values(self.shape.head_size) for _ in range(2)]
        for number in range(self.shape.layers):
            self.turn = number
            x = self.layer(x, False)
        out = self.norm(x, False)
        del ids, mask, positions
        return out

    def _cells(self, size: int) -> Block:
        """A number for every new token and every token that it may see."""
        return self.tape.new(self.tokens * (self.past + self.length) * size, IDS)

    def attention(self, x: Block, saves: bool) -> Block:
        """Attention of the new tokens to all that are there."""
        s, total = self.shape, self.past + self.length
        q = self.linear(x, s.hidden, s.queries, saves)
        k = self.linear(x, s.hidden, s.keys, saves)
        v = self.linear(x, s.hidden, s.keys, saves)
        turned = self._rotated(q, s.queries), self._rotated(k, s.keys)
        q, k = turned
        del turned
        for number in range(2):
            self.cache[self.turn][number] = self.half(total)
        del k, v
        repeated: list[Block] = []
        if self.padded and self.length > 1 and s.kv_heads != s.heads:
            each = self.rows * total * s.queries * self.device.width
            repeated = [self.tape.new(each) for _ in range(2)]
        bias = self._cells(self.device.width) if self.padded else None  # a mask of numbers
        out = self.values(s.queries)
        sums = self.values(s.heads, 4)
        del sums, bias, repeated, q
        return self.linear(out, s.queries, s.hidden, saves)
