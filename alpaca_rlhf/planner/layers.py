"""Memory of a decoder layer, forward and backward.

Follows transformers' LLaMA (Qwen and Gemma where they differ), PEFT's LoRA layer on a 4-bit one, on
a card `models/lora_product.py`, and `models/attention.py` line by line, with a block for every
tensor that grows with the tokens. N is the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from alpaca_rlhf.core.kernels import FLASH_FROM, Capability, Kernel, attention_kernel
from alpaca_rlhf.planner.shapes import NF4_BLOCK, Shape
from alpaca_rlhf.planner.tape import Block, Tape

COPY = "one matrix in 16 bit"
"""Item of a 4-bit weight that is dequantised for one product."""
FEW = 4
"""Rows up to which bitsandbytes multiplies with the 4-bit codes themselves, on every GPU
(bitsandbytes 0.50.2 backends/cuda/ops.py)."""
GRADIENTS = "gradients"
ADAPTERS = "adapters"


@dataclass(frozen=True)
class Device:
    """The kind of a device and the width of its compute dtype."""

    kind: Literal["cuda", "cpu"] = "cuda"
    """CPU kernels allocate their scratch space where the meter of the tests cannot see it."""
    width: int = 2
    """Bytes of a number in the compute dtype: 2 for bf16 and fp16, 4 for fp32."""
    capability: Capability | None = FLASH_FROM
    """Compute capability of a card; None where it has none that says so (ROCm)."""

    def kernel(self, shape: Shape) -> Kernel:
        """The attention kernel over packed sequences of a base."""
        grouped = shape.kv_heads != shape.heads
        return attention_kernel(
            self.kind, self.capability, self.width, shape.head_size, grouped=grouped
        )

    @property
    def recasts(self) -> bool:
        """True if LoRA casts its input to fp32, and autocast casts it back.

        PEFT checks whether autocast is on for CUDA, even on a CPU (peft 0.21.2 tuners/lora/bnb.py).
        """
        return self.kind == "cpu" and self.width < 4

    @property
    def fuses(self) -> bool:
        """True if LoRA's product is added where the frozen one lies (`models/lora_product.py`)."""
        return self.kind == "cuda"

    @property
    def attention(self) -> int:
        """Bytes of a number inside the attention kernel, which is fp32 on a CPU."""
        return 4 if self.kind == "cpu" else self.width


@dataclass
class Layers:
    """The decoder layers of a pass over `rows` packed sequences of `length` tokens.

    Args:
        tape: Counts the blocks.
        shape: Sizes of the model.
        device: Compute dtype and kind.
        rank: LoRA rank; 0 without an adapter.
        rows: Number of sequences.
        length: Tokens of each.
        learns: The adapter's weights require gradients.
        accumulates: Gradients of an earlier micro-batch exist.
        decoding: The layers have been made ready by `models/dense.py`.
        dense: They then have a 16-bit copy.
        repeated: Tokens of prompts that rows share, beyond the first time; they are in the
            attention's tables alone.
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
    repeated: int = 0
    saved: list[tuple[Block | None, ...]] = field(default_factory=list)
    """Tensors that the backward needs; it pops them from the end."""
    gradients: list[Block] = field(default_factory=list)
    """Gradients of adapter weights, which outlive the pass."""
    casts: list[Block] = field(default_factory=list)
    """Adapter weights that autocast caches in 16 bit until it ends."""

    @property
    def kernel(self) -> Kernel:
        """The attention kernel over the packed sequences."""
        return self.device.kernel(self.shape)

    @property
    def tokens(self) -> int:
        """N, the tokens of all rows, those of a shared prompt once."""
        return self.rows * self.length - self.repeated

    def values(self, width: int, size: int | None = None) -> Block:
        """Allocate (N, width) at `size` bytes a number, by default the compute dtype's."""
        return self.tape.new(self.tokens * width * (size or self.device.width))

    def _table(self, width: int, size: int) -> Block:
        """Allocate (rows, length, width), which has the tokens of a shared prompt in every row."""
        return self.tape.new(self.rows * self.length * width * size)

    def _cast(self, weights: int) -> Block | None:
        """Allocate autocast's 16-bit copy of adapter weights."""
        if self.device.width == 4 or self.decoding:
            return None
        cast = self.tape.new(weights * self.device.width, ADAPTERS)
        if self.learns and not self.device.fuses:
            # autocast caches the casts of leaves that require gradients
            self.casts.append(cast)
        return cast

    def _dequantised(self, weights: int) -> Block | None:
        """Allocate the 16-bit matrix inside a fused product; the meter cannot see it on a CPU."""
        few = self.decoding and self.tokens <= FEW  # a kernel reads the codes themselves
        if self.device.kind == "cpu" or few or (self.decoding and self.dense):
            return None
        return self.tape.new(weights * self.device.width + 4 * weights // NF4_BLOCK, COPY)

    # --- forward ----------------------------------------------------------------------------------

    def norm(self, x: Block, saves: bool, *, width: int = 0, rows: int = 1) -> Block:
        """Allocate RMSNorm, computed in fp32.

        Args:
            x: (N, H), or (N, width).
            saves: The backward needs its tensors.
            width: All heads together, where each is normalised apart.
            rows: Heads of a token.
        """
        h, exact = width or self.shape.hidden, self.device.width == 4
        x32 = x if exact else self.values(h, 4)
        squares = self.values(h, 4)
        root = self.values(rows, 4)
        del squares
        scaled = self.values(h, 4)
        if saves:
            self.saved.append((x32, root))
        if self.shape.gemma:  # weighed in fp32, and cast only then
            weighed = self.values(h, 4)
            del x32, scaled
            return weighed if exact else self.values(h)
        del x32
        back = scaled if exact else self.values(h)
        out = self.values(h)
        del scaled, back
        return out

    def _head_norm(self, x: Block, width: int, heads: int, saves: bool) -> Block:
        """Allocate the norm of queries or keys, in families that have one."""
        if not self.shape.head_norms:
            return x
        return self.norm(x, saves, width=width, rows=heads)

    def linear(self, x: Block, a: int, b: int, saves: bool) -> Block:
        """Allocate the product that takes (N, a) to (N, b), with the adapter's beside it."""
        # 1. The frozen product, through a dequantised matrix.
        matrix = self._dequantised(a * b)
        product = self.values(b)
        del matrix
        if not self.rank:
            return product
        if self.device.fuses:
            down_weight, up_weight = self._cast(self.rank * a), self._cast(self.rank * b)
            down = self.values(self.rank)
            if saves:
                self.saved.append((x, down, down_weight, up_weight))
            return product
        recasts = self.device.recasts and not self.decoding
        result = product if self.decoding else self.values(b)
        del product
        # 2. The adapter's product: down to the rank, up again, scaled, and added to the frozen one.
        exact = self.values(a, 4) if recasts else None
        down_weight = self._cast(self.rank * a)
        lora_input = self.values(a) if recasts else x
        down = self.values(self.rank)
        up_weight = self._cast(self.rank * b)
        up = self.values(b)
        scaled = self.values(b)
        del up
        out = self.values(b)
        if saves:
            self.saved.append((lora_input, down, down_weight, up_weight))
        del result, exact, scaled
        return out

    def _rotated(self, x: Block, width: int) -> Block:
        """Allocate rotary positions applied to (N, width): x * cos + rotate_half(x) * sin."""
        first = self.values(width)
        half = self.values(width // 2)
        swapped = self.values(width)
        del half
        second = self.values(width)
        del swapped
        out = self.values(width)
        del first, second
        return out

    def _spread(self, width: int) -> Block:
        """Allocate packed tokens as rows of a table."""
        size = self.device.attention
        table = self._table(width, size)
        self._table(width, size)  # the gathered tokens, until they are in their places
        return table

    def attention(self, x: Block, saves: bool) -> Block:
        """Allocate the attention block without its norm and residual."""
        s, size = self.shape, self.device.attention
        # 1. Project, and rotate queries and keys.
        q = self.linear(x, s.hidden, s.queries, saves)
        q = self._head_norm(q, s.queries, s.heads, saves)
        k = self.linear(x, s.hidden, s.keys, saves)
        k = self._head_norm(k, s.keys, s.kv_heads, saves)
        v = self.linear(x, s.hidden, s.keys, saves)
        del x
        rotated = self._rotated(q, s.queries), self._rotated(k, s.keys)
        q, k = rotated
        del rotated
        # 2. Cast to the kernel's dtype, and spread the packed rows into tables.
        exact: list[Block] = []
        if size != self.device.width:
            exact = [self.values(s.queries, size), self.values(s.keys, size)]
            exact.append(self.values(s.keys, size))
        if self.kernel == "varlen":
            del exact
            back = self._varlen([q, k, v], saves)
            del q, k, v
            return self.linear(back, s.queries, s.hidden, saves)
        tables = [self._spread(width) for width in (s.queries, s.keys, s.keys)]
        # 3. The attention kernel; its softmax sums are in fp32.
        if self.kernel == "math":
            out = self._math(saves)
        else:
            out = self._table(s.queries, size)
            sums = self._table(s.heads, 4)
            if saves:
                self.saved.append((*tables, out, sums))
            del sums
        # 4. Pack the rows again, and project.
        collected = self._table(s.queries, size)
        joined = self._table(s.queries, size)
        ordered = self.values(s.queries, size)
        back = ordered if size == self.device.width else self.values(s.queries)
        del q, k, v, exact, tables, out, collected, joined, ordered
        return self.linear(back, s.queries, s.hidden, saves)

    def _varlen(self, packed: list[Block], saves: bool) -> Block:
        """Allocate the kernel that reads packed queries, keys and values where they lie."""
        s, size = self.shape, self.device.attention
        if self.repeated:  # keys and values of a shared prompt are gathered for every row
            packed = [packed[0], self._table(s.keys, size), self._table(s.keys, size)]
        out = self.values(s.queries, size)
        sums = self.values(s.heads, 4)
        if saves:
            self.saved.append((*packed, out, sums))
        return out

    def _math(self, saves: bool) -> Block:
        """Allocate attention by plain products in fp32 over the tables, which keeps all scores.

        Follows `_scaled_dot_product_attention_math` (aten/src/ATen/native/transformers/
        attention.cpp).
        """
        s = self.shape
        scores = self.rows * s.heads * self.length**2
        # 1. Cast to fp32 and scale; keys and values are repeated for every query head.
        queries = self._table(s.queries, 4)
        scaled_queries = self._table(s.queries, 4)
        del queries
        once = [self._table(s.keys, 4) for _ in range(2)]
        every_head = [self._table(s.queries, 4) for _ in range(2)]
        scaled_keys = self._table(s.queries, 4)
        # 2. Scores; their softmax, in which rows without any key are sought.
        raw = self.tape.new(4 * scores)
        softmax = self.tape.new(4 * scores)
        masked = self.tape.new(scores)
        weights = self.tape.new(4 * scores)
        del softmax, masked, raw
        # 3. Outputs, and both results in the compute dtype.
        out = self._table(s.queries, 4)
        narrow = self._table(s.queries, self.device.width)
        self.tape.new(self.device.width * scores)
        if saves:
            self.saved.append((scaled_queries, scaled_keys, every_head[1], weights))
        del once, out
        return narrow

    def mlp(self, x: Block, saves: bool) -> Block:
        """Allocate the feed-forward block without its norm and residual."""
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
        """Take (N, H) through a layer; the first one's input requires no gradient."""
        for block in (self.attention, self.mlp):
            normed = self.norm(x, saves and not (first and block == self.attention))
            out = block(normed, saves)
            del normed
            if self.shape.gemma:  # normalised after as well as before
                out = self.norm(out, saves)
            x_next = self.values(self.shape.hidden)
            del out
            x = x_next
            del x_next
        return x

    # --- backward ---------------------------------------------------------------------------------

    def _keep(self, weights: int) -> None:
        """Allocate a gradient of adapter weights: kept, or added to an earlier micro-batch's."""
        gradient = self.tape.new(4 * weights, GRADIENTS)
        if not self.accumulates:
            self.gradients.append(gradient)

    def linear_back(
        self, g: list[Block], a: int, b: int, total: Block | None, *, into_input: bool = True
    ) -> Block | None:
        """Allocate a linear layer's input gradient, added to `total`; takes (N, b) out of `g`."""
        size = self.device.width
        if self.device.fuses:
            return self._fused_back(g, a, b, total, into_input=into_input)
        lora_input, down, down_weight, up_weight = self.saved.pop()
        # 1. Gradients of the adapter's two matrices.
        scaled = self.values(b)
        up_grad = self.tape.new(self.rank * b * size, GRADIENTS) if size < 4 else None
        down_grad = self.values(self.rank)
        self._keep(self.rank * b)
        del scaled, up_grad, down, up_weight
        if size < 4:
            self.tape.new(self.rank * a * size, GRADIENTS)
        self._keep(self.rank * a)
        if not into_input:  # the first layer's input is frozen
            g.pop()
            return None
        # 2. The input's gradient through the adapter.
        through = self.values(a)
        del lora_input, down_grad, down_weight
        if self.device.recasts:
            exact = self.values(a, 4)
            del through
            through = self.values(a)
            del exact
        if total is not None:
            total = self._added([total, through])
            del through
        # 3. The input's gradient through the dequantised base.
        scales = self.tape.new(4 * a * b // NF4_BLOCK, COPY)
        matrix = self.tape.new(a * b * size, COPY)
        through_base = self.values(a)
        del scales
        g.pop()
        if total is None:
            total = through
            del through
        del matrix
        return self._added([total, through_base])

    def _fused_back(
        self, g: list[Block], a: int, b: int, total: Block | None, *, into_input: bool
    ) -> Block | None:
        """Allocate the same where the adapter's part is added in place."""
        lora_input, down, down_weight, up_weight = self.saved.pop()
        # 1. Gradients of the adapter's two matrices, in fp32.
        down_grad = self.values(self.rank)
        self._keep(self.rank * b)
        self._keep(self.rank * a)
        # 2. The input's gradient through the dequantised base, and the adapter's added to it.
        through = None
        if into_input:
            scales = self.tape.new(4 * a * b // NF4_BLOCK, COPY)
            matrix = self.tape.new(a * b * self.device.width, COPY)
            del scales
            through = self.values(a)
            del matrix
        del lora_input, down, down_weight, up_weight, down_grad
        g.pop()
        if through is None or total is None:
            return through
        return self._added([total, through])

    def _added(self, terms: list[Block]) -> Block:
        """Allocate the sum of blocks of one size."""
        return self.tape.new(terms[0].size)

    def norm_back(self, g: list[Block], width: int = 0) -> Block:
        """Allocate the gradient of RMSNorm's input."""
        h, exact = width or self.shape.hidden, self.device.width == 4
        x32, root = self.saved.pop()
        if self.shape.gemma:  # cast to fp32 first, and weighed there
            cast = g[0] if exact else self.values(h, 4)
            g.pop()
            weighed: Block | None = self.values(h, 4)
            del cast
            exact32 = weighed
        else:
            weighed = self.values(h)
            g.pop()
            exact32 = weighed if exact else self.values(h, 4)
        weighed = None
        through, by_x = self.values(h, 4), self.values(h, 4)
        del exact32, by_x
        terms = [self.values(h, 4) for _ in range(4)]
        del terms[1:3]
        out = self.values(h, 4)
        del terms, through, x32, root
        if exact:
            return out
        return self.values(h)

    def mlp_back(self, g: list[Block]) -> Block:
        """Allocate the gradient of the feed-forward block's input."""
        h, i = self.shape.hidden, self.shape.inner
        product = self.linear_back(g, i, h, None)
        assert product is not None
        active, up = self.saved.pop()
        branch_grads = [self.values(i), self.values(i)]
        del product, active, up
        total = self.linear_back(branch_grads, h, i, None)
        (gate,) = self.saved.pop()
        gate_grads = [self.values(i)]
        branch_grads.clear()
        del gate
        input_grad = self.linear_back(gate_grads, h, i, total)
        assert input_grad is not None
        return input_grad

    def attention_back(self, g: list[Block], *, first: bool) -> Block | None:
        """Allocate the gradient of the attention block's input; None in the first layer."""
        s, size = self.shape, self.device.attention
        # 1. Output projection, and its gradient as rows of a table.
        through = self.linear_back(g, s.queries, s.hidden, None)
        assert through is not None
        if size != self.device.width:
            through = self.values(s.queries, size)
        output_grad = [through]
        del through
        back = self._varlen_back if self.kernel == "varlen" else self._tables_back
        packed_grads = back(output_grad)
        if size != self.device.width:
            cast = [self.values(w) for w in (s.keys, s.keys, s.queries)]
            packed_grads.clear()
            packed_grads += cast
            del cast
        # 2. Rotary positions, then the three projections.
        rotated = []
        for width in (s.queries, s.keys):
            terms = [self.values(width) for _ in range(3)]
            rotated.append(self.values(width))
            del packed_grads[-1], terms
        total: Block | None = None
        grads = [packed_grads.pop(), rotated[1], rotated[0]]  # value, key, query
        rotated.clear()
        for index, width in enumerate((s.keys, s.keys, s.queries)):
            output_grads = [self.values(width)]
            grads.pop(0)
            if index and s.head_norms:
                output_grads.append(self.norm_back(output_grads, width))
            total = self.linear_back(output_grads, s.hidden, width, total, into_input=not first)
        return total

    def _tables_back(self, g: list[Block]) -> list[Block]:
        """Allocate the gradients of keys, values and queries by way of tables; empties `g`."""
        s, size = self.shape, self.device.attention
        # 1. The outputs' gradient as rows of a table.
        empty = self._table(s.queries, size)
        packed = self._table(s.queries, size)
        g.pop()
        del empty
        empty = self._table(s.queries, size)
        table = self._table(s.queries, size)
        del packed, empty
        # 2. The kernel's backward.
        scratch = None
        if self.kernel == "math":
            self._math_back()
        elif self.device.kind == "cuda":  # dq in fp32; dk and dv of every query head
            grouped = 2 * self.device.width if s.kv_heads != s.heads else 0
            scratch = self._table(s.queries, 4 + grouped)
        tables = [self._table(w, size) for w in (s.keys, s.keys, s.queries)]
        if self.kernel != "math":
            self.saved.pop()
        del table, scratch
        # 3. Gradients of query, key and value, gathered from their tables.
        packed_grads = []
        for width in (s.keys, s.keys, s.queries):
            gathered = self._table(width, size)
            tables.pop(0)
            empty = self.values(width, size)
            packed_grads.append(self.values(width, size))
            del gathered, empty
        return packed_grads

    def _varlen_back(self, g: list[Block]) -> list[Block]:
        """Allocate the same from the kernel on packed tokens; empties `g`."""
        s, size = self.shape, self.device.attention
        # 1. The kernel: dq in fp32; dk and dv of every query head.
        scratch = [self.values(s.queries, 4)]
        if s.kv_heads != s.heads:
            scratch += [self._table(s.queries, size) for _ in range(2)]
        widths = (s.keys, s.keys)
        grads = [self._table(width, size) for width in widths]
        queries = self.values(s.queries, size)
        self.saved.pop()
        scratch.clear()
        g.pop()
        # 2. Gradients of a shared prompt's keys and values add up.
        if self.repeated:
            for index, width in enumerate(widths):
                empty = self.values(width, size)
                grads[index] = self.values(width, size)
                del empty
        return [*grads, queries]

    def _math_back(self) -> None:
        """Allocate the way back through plain products."""
        s = self.shape
        scores = self.rows * s.heads * self.length**2
        weights_grad = self.tape.new(4 * scores)
        values_grad = self._table(s.queries, 4)
        scores_grad = self.tape.new(4 * scores)
        self.saved.pop()
        del weights_grad
        grads = [self._table(s.queries, 4) for _ in range(2)]
        del values_grad, scores_grad, grads

    def _past_post_norm(self, g: list[Block]) -> list[Block]:
        """The gradient of a block's output, before the norm that some families have there."""
        return [self.norm_back([g[0]])] if self.shape.gemma else [g[0]]

    def layer_back(self, g: list[Block], *, first: bool = False) -> None:
        """Replace the gradient of a layer's output in `g` by that of its input."""
        grads = [self.mlp_back(self._past_post_norm(g))]
        # The residual carries the gradient past the block.
        normed = self.norm_back(grads)
        g[0] = self._added([g[0], normed])
        del normed
        attention_grad = self.attention_back(self._past_post_norm(g), first=first)
        if attention_grad is None:
            g.clear()
            return
        grads = [attention_grad]
        del attention_grad
        normed = self.norm_back(grads)
        g[0] = self._added([g[0], normed])
