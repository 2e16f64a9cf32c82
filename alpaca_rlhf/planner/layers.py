"""What a decoder layer keeps and passes through memory, forwards and backwards.

Line for line what transformers' LLaMA, PEFT's LoRA layer on a 4-bit one, and `models/attention.py`
do, with a block for every tensor of the size of its tokens. Shapes in comments: N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from alpaca_rlhf.planner.shapes import NF4_BLOCK, Shape
from alpaca_rlhf.planner.tape import Block, Tape

COPY = "one matrix in 16 bit"
"""Item of a 4-bit weight that is made whole for one product."""
FEW = 4
"""Rows up to which bitsandbytes multiplies with a 4-bit weight as it is, on every card
(bitsandbytes 0.50.2 backends/cuda/ops.py)."""
GRADIENTS = "gradients"
ADAPTERS = "adapters"


@dataclass(frozen=True)
class Device:
    """How a device computes."""

    kind: Literal["cuda", "cpu"] = "cuda"
    """Kernels on a CPU keep what they need inside; the meter that tests use cannot see it."""
    width: int = 2
    """Bytes of a number in the compute dtype: 2 for bf16 and fp16, 4 for fp32."""

    @property
    def recasts(self) -> bool:
        """Whether LoRA casts its input to fp32, and autocast back again.

        PEFT asks whether autocast is on for CUDA, even on a CPU (peft 0.21.2 tuners/lora/bnb.py).
        """
        return self.kind == "cpu" and self.width < 4

    @property
    def attention(self) -> int:
        """Bytes of a number inside the attention, which is fp32 on a CPU."""
        return 4 if self.kind == "cpu" else self.width


@dataclass
class Layers:
    """The decoder layers of a pass over `rows` packed sequences of `length` tokens.

    Args:
        tape: Counts.
        shape: The model.
        device: How it computes.
        rank: LoRA's, 0 without an adapter.
        rows: Sequences.
        length: Tokens of each.
        learns: Whether the adapter's weights ask for gradients.
        accumulates: Whether gradients of an earlier micro-batch lie there already.
        decoding: Whether the layers have been made ready by `models/dense.py`.
        dense: Whether they then have a 16-bit copy.
    """

    tape: Tape
    shape: Shape
    device: Device
    rank: int
    rows: int
    length: int
    learns: bool = True
    accumulates: bool = True
    decoding: bool = False
    dense: bool = False
    saved: list[tuple[Block | None, ...]] = field(default_factory=list)
    """What the backward needs, the last first."""
    gradients: list[Block] = field(default_factory=list)
    """Gradients of adapters, which stay."""
    casts: list[Block] = field(default_factory=list)
    """Adapter weights that autocast keeps in 16 bit until its end."""

    @property
    def tokens(self) -> int:
        """N."""
        return self.rows * self.length

    def values(self, width: int, size: int | None = None, item: str | None = None) -> Block:
        """(N, width) in `size` bytes a number, by default the compute dtype's."""
        return self.tape.new(self.tokens * width * (size or self.device.width), item)

    def _cast(self, weights: int) -> Block | None:
        if self.device.width == 4 or self.decoding:
            return None
        made = self.tape.new(weights * self.device.width, ADAPTERS)
        if self.learns:  # autocast remembers casts of leaves that ask for gradients
            self.casts.append(made)
        return made

    def _whole(self, weights: int) -> Block | None:
        """The 16-bit copy inside a fused product; on a CPU it is not seen."""
        few = self.decoding and self.tokens <= FEW  # a kernel reads the codes themselves
        if self.device.kind == "cpu" or few or (self.decoding and self.dense and self.rank):
            return None
        return self.tape.new(weights * self.device.width + 4 * weights // NF4_BLOCK, COPY)

    # --- forward ----------------------------------------------------------------------------------

    def norm(self, x: Block, saves: bool) -> Block:
        """RMSNorm of (N, H), in fp32."""
        h, exact = self.shape.hidden, self.device.width == 4
        x32 = x if exact else self.values(h, 4)
        squares = self.values(h, 4)
        root = self.values(1, 4)
        del squares
        scaled = self.values(h, 4)
        if saves:
            self.saved.append((x32, root))
        del x32
        back = scaled if exact else self.values(h)
        out = self.values(h)
        del scaled, back
        return out

    def linear(self, x: Block, a: int, b: int, saves: bool) -> Block:
        """(N, a) to (N, b) with an adapter."""
        whole = self._whole(a * b)
        product = self.values(b)
        del whole
        if not self.rank:
            return product
        recasts = self.device.recasts and not self.decoding
        result = product if self.decoding else self.values(b)
        del product
        exact = self.values(a, 4) if recasts else None
        down_weight = self._cast(self.rank * a)
        own = self.values(a) if recasts else x
        down = self.values(self.rank)
        up_weight = self._cast(self.rank * b)
        up = self.values(b)
        scaled = self.values(b)
        del up
        out = self.values(b)
        if saves:
            self.saved.append((own, down, down_weight, up_weight))
        del result, exact, scaled
        return out

    def _rotated(self, x: Block, width: int) -> Block:
        first = self.values(width)
        half = self.values(width // 2)
        turned = self.values(width)
        del half
        second = self.values(width)
        del turned
        out = self.values(width)
        del first, second
        return out

    def _spread(self, width: int, saves: bool) -> Block:
        """Packed tokens as rows of a table; the gathered ones are kept for the backward."""
        size = self.device.attention
        empty, own = self.values(width, size), self.values(width, size)
        table = self.values(width, size)
        if saves:
            self.saved.append((own,))
        del empty, own
        return table

    def attention(self, x: Block, saves: bool) -> Block:
        """The attention block without its norm and residual."""
        s, size = self.shape, self.device.attention
        q = self.linear(x, s.hidden, s.queries, saves)
        k = self.linear(x, s.hidden, s.keys, saves)
        v = self.linear(x, s.hidden, s.keys, saves)
        del x
        turned = self._rotated(q, s.queries), self._rotated(k, s.keys)
        q, k = turned
        del turned
        exact: list[Block] = []
        if size != self.device.width:
            exact = [self.values(s.queries, size), self.values(s.keys, size)]
            exact.append(self.values(s.keys, size))
        tables = [self._spread(width, saves) for width in (s.queries, s.keys, s.keys)]
        out = self.values(s.queries, size)
        sums = self.values(s.heads, 4)
        if saves:
            self.saved.append((*tables, out, sums))
        del sums
        collected = self.values(s.queries, size)
        joined = self.values(s.queries, size)
        ordered = self.values(s.queries, size)
        back = ordered if size == self.device.width else self.values(s.queries)
        del q, k, v, exact, tables, out, collected, joined, ordered
        return self.linear(back, s.queries, s.hidden, saves)

    def mlp(self, x: Block, saves: bool) -> Block:
        """The feed-forward block without its norm and residual."""
        h, i = self.shape.hidden, self.shape.inner
        gate = self.linear(x, h, i, saves)
        active = self.values(i)
        if saves:
            self.saved.append((gate,))
        del gate
        up = self.linear(x, h, i, saves)
        product = self.values(i)
        if saves:
            self.saved.append((active, up))
        del active, up
        return self.linear(product, i, h, saves)

    def layer(self, x: Block, saves: bool, *, first: bool = False) -> Block:
        """(N, H) through a layer; the input of the first one asks for no gradient."""
        for block in (self.attention, self.mlp):
            normed = self.norm(x, saves and not (first and block == self.attention))
            out = block(normed, saves)
            del normed
            x_next = self.values(self.shape.hidden)
            del out
            x = x_next
            del x_next
        return x

    # --- backward ---------------------------------------------------------------------------------

    def _keep(self, weights: int) -> None:
        """A gradient of adapter weights: kept, or added to what lies there."""
        made = self.tape.new(4 * weights, GRADIENTS)
        if not self.accumulates:
            self.gradients.append(made)

    def linear_back(
        self, g: list[Block], a: int, b: int, total: Block | None, *, into_input: bool = True
    ) -> Block | None:
        """Gradient of a linear layer's input, added to `total`; takes (N, b) out of `g`."""
        size = self.device.width
        own, down, down_weight, up_weight = self.saved.pop()
        scaled = self.values(b)
        up_grad = self.tape.new(self.rank * b * size, GRADIENTS) if size < 4 else None
        down_grad = self.values(self.rank)
        self._keep(self.rank * b)
        del scaled, up_grad, down, up_weight
        if size < 4:
            self.tape.new(self.rank * a * size, GRADIENTS)
        self._keep(self.rank * a)
        if not into_input:
            g.pop()
            return None
        through = self.values(a)
        del own, down_grad, down_weight
        if self.device.recasts:
            exact = self.values(a, 4)
            del through
            through = self.values(a)
            del exact
        if total is not None:
            total = self._added([total, through])
            del through
        scales = self.tape.new(4 * a * b // NF4_BLOCK, COPY)
        whole = self.tape.new(a * b * size, COPY)
        plain = self.values(a)
        del scales
        g.pop()
        if total is None:
            total = through
            del through
        out = self._added([total, plain])
        del whole
        return out

    def _added(self, two: list[Block]) -> Block:
        return self.tape.new(two[0].size)

    def norm_back(self, g: list[Block]) -> Block:
        """Gradient of RMSNorm's input."""
        h = self.shape.hidden
        x32, root = self.saved.pop()
        weighed: Block | None = self.values(h)
        g.pop()
        exact = weighed if self.device.width == 4 else self.values(h, 4)
        weighed = None
        through, by_x = self.values(h, 4), self.values(h, 4)
        del exact, by_x
        parts = [self.values(h, 4) for _ in range(4)]
        del parts[1:3]
        out = self.values(h, 4)
        del parts, through, x32, root
        if self.device.width == 4:
            return out
        return self.values(h)

    def mlp_back(self, g: list[Block]) -> Block:
        """Gradient of the feed-forward block's input."""
        h, i = self.shape.hidden, self.shape.inner
        product = self.linear_back(g, i, h, None)
        assert product is not None
        active, up = self.saved.pop()
        parts = [self.values(i), self.values(i)]
        del product, active, up
        total = self.linear_back(parts, h, i, None)
        (gate,) = self.saved.pop()
        own = [self.values(i)]
        parts.clear()
        del gate
        found = self.linear_back(own, h, i, total)
        assert found is not None
        return found

    def attention_back(self, g: list[Block], *, first: bool) -> Block | None:
        """Gradient of the attention block's input; None in the first layer."""
        s, size = self.shape, self.device.attention
        through = self.linear_back(g, s.queries, s.hidden, None)
        if size != self.device.width:
            through = self.values(s.queries, size)
        empty = self.values(s.queries, size)
        packed = self.values(s.queries, size)
        del through, empty
        empty = self.values(s.queries, size)
        table = self.values(s.queries, size)
        del packed, empty
        scratch = None
        if self.device.kind == "cuda":  # dq in fp32; dk and dv of every query head
            grouped = 2 * self.device.width if s.kv_heads != s.heads else 0
            scratch = self.values(s.queries, 4 + grouped)
        tables = [self.values(w, size) for w in (s.keys, s.keys, s.queries)]
        self.saved.pop()
        del table, scratch
        packed_grads = []
        for width in (s.keys, s.keys, s.queries):
            gathered = self.values(width, size)
            tables.pop(0)
            self.saved.pop()
            empty = self.values(width, size)
            packed_grads.append(self.values(width, size))
            del gathered, empty
        if size != self.device.width:
            cast = [self.values(w) for w in (s.keys, s.keys, s.queries)]
            packed_grads.clear()
            packed_grads += cast
            del cast
        turned = []
        for width in (s.queries, s.keys):
            parts = [self.values(width) for _ in range(3)]
            turned.append(self.values(width))
            del packed_grads[-1], parts
        total: Block | None = None
        grads = [packed_grads.pop(), turned[1], turned[0]]  # value, key, query
        turned.clear()
        for width in (s.keys, s.keys, s.queries):
            own = [self.values(width)]
            grads.pop(0)
            total = self.linear_back(own, s.hidden, width, total, into_input=not first)
        return total

    def layer_back(self, g: list[Block], *, first: bool = False) -> None:
        """Take the gradient of a layer's output out of `g`, put that of its input there."""
        through = [self.mlp_back([g[0]])]
        normed = self.norm_back(through)
        g[0] = self._added([g[0], normed])
        del normed
        found = self.attention_back([g[0]], first=first)
        if found is None:
            g.clear()
            return
        through = [found]
        del found
        normed = self.norm_back(through)
        g[0] = self._added([g[0], normed])
