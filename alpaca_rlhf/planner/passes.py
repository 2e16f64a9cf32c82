"""Whole passes on the tape: training on a micro-batch, and scoring one without gradients."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_rlhf.core.sizes import LOGITS_PER_CHUNK, most_prompts
from alpaca_rlhf.planner.layers import ADAPTERS, Device, Layers
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.planner.tape import Block, Tape

LOGITS, CACHE, IDS = "logits", "keys and values", "token ids and masks"


@dataclass(frozen=True)
class Rows:
    """Sequences of one length."""

    count: int
    """Number of sequences."""
    prompt: int
    """Tokens of each prompt."""
    completion: int
    """Tokens of each completion."""
    k: int = 1
    """Completions of each prompt, which lie side by side and share its tokens."""
    cut: int = 0
    """Rows of the minibatches that are cut into parts of `count`; 0 where all rows are one."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.completion

    @property
    def prompts(self) -> int:
        """Most prompts of `count` neighbours, where rows are cut into parts of that size."""
        return most_prompts(self.count, self.k, self.cut)

    @property
    def repeated(self) -> int:
        """Tokens of prompts that are not packed again."""
        return (self.count - self.prompts) * self.prompt


@dataclass(frozen=True)
class Pass:
    """A pass of packed rows through the base and one adapter."""

    tape: Tape
    shape: Shape
    device: Device
    rank: int
    """LoRA rank; 0 without an adapter."""
    checkpointing: int = 0
    """Each n-th layer's activations are recomputed in the backward pass; 0 for none."""
    trainable: bool = False
    """The adapter's weights require gradients."""

    def _layers(
        self, rows: Rows, *, accumulates: bool = True, decoding: bool = False, dense: bool = False
    ) -> Layers:
        return Layers(
            self.tape,
            self.shape,
            self.device,
            self.rank,
            rows.count,
            rows.length,
            learns=self.trainable,
            accumulates=accumulates,
            decoding=decoding,
            dense=dense,
            repeated=rows.repeated,
        )

    def _ids(self, rows: Rows) -> Block:
        """Allocate ids, positions, places for the attention, and completions with their mask."""
        table_tokens = rows.count * rows.length
        tokens = table_tokens - rows.repeated
        if self.device.kernel(self.shape) == "varlen":
            places = 3 * tokens + (table_tokens if rows.repeated else 0)
        else:
            places = 4 * tokens + 2 * table_tokens
        size = 8 * places + 9 * rows.count * rows.completion
        return self.tape.new(size, IDS)

    def _positions(self, net: Layers) -> list[Block]:
        """Allocate the cosines and sines of the rotary positions."""
        size = self.shape.head_size
        # Computed in fp32; both are then cast to the compute dtype.
        exact = [net.values(size // 2, 4)] + [net.values(size, 4) for _ in range(3)]
        del exact[0]
        positions = [net.values(size) for _ in range(2)]
        exact.clear()
        return positions

    def _is_recomputed(self, layer: int) -> bool:
        return self.checkpointing > 0 and layer % self.checkpointing == 0

    def hidden(self, net: Layers, *, saves: bool, checkpoints: list[Block] | None = None) -> Block:
        """Allocate (N, H) last hidden states, and what the backward needs of every layer."""
        x = net.values(self.shape.hidden)
        positions = self._positions(net)
        if self.shape.gemma:  # of layers with a window and without have a rotary base each
            positions += self._positions(net)
        for index in range(self.shape.layers):
            recomputed = checkpoints is not None and self._is_recomputed(index)
            if checkpoints is not None and recomputed:
                checkpoints.append(x)
            x = net.layer(x, saves and not recomputed, first=index == 0)
        out = net.norm(x, saves)
        if saves:
            net.saved.append(tuple(positions))
        # Autocast ends with the forward, and drops its cached casts.
        net.casts.clear()
        return out

    def scored(
        self,
        rows: Rows,
        loss_tokens: int,
        *,
        values: bool = False,
        decoding: bool = False,
        dense: bool = False,
    ) -> None:
        """Run a forward without gradients.

        Args:
            rows: The sequences.
            loss_tokens: Tokens of each row whose log-probability and entropy are computed; 0
                reads one score a row.
            values: A scalar head reads the states of those tokens too.
            decoding: The layers have been made ready for decoding.
            dense: They then have a 16-bit copy.
        """
        ids = self._ids(rows)
        # 1. Forward through the layers.
        net = self._layers(rows, decoding=decoding, dense=dense)
        hidden = self.hidden(net, saves=False)
        # 2. Only the states that are scored outlive the others.
        width, count = self.device.width, rows.count * max(1, loss_tokens)
        states = self.tape.new(count * self.shape.hidden * width)
        del hidden
        if loss_tokens:
            self.logprobs(count, slopes=False, entropy=True)
        if values and width < 4:
            self.tape.new(4 * count * self.shape.hidden)
        del ids, states

    def trained(
        self,
        rows: Rows,
        loss_tokens: int,
        *,
        logits: bool = True,
        head: bool = False,
        accumulates: bool = True,
    ) -> None:
        """Run the forward and backward of a micro-batch.

        Args:
            rows: The sequences.
            loss_tokens: Tokens of each row that carry loss; 0 is a score at each row's end.
            logits: The loss is of their log-probabilities; otherwise of a head's values.
            head: A head reads the same states too, without a gradient into them.
            accumulates: Gradients of an earlier micro-batch exist.
        """
        # 1. Forward through the layers.
        ids = self._ids(rows)
        net = self._layers(rows, accumulates=accumulates)
        checkpoints: list[Block] = []
        hidden = self.hidden(net, saves=True, checkpoints=checkpoints)

        # 2. Losses on the states that carry them.
        width, states = self.device.width, rows.count * max(1, loss_tokens) * self.shape.hidden
        gathered = self.tape.new(states * width)
        saved: list[Block] = []
        if loss_tokens and logits:
            saved += self.logprobs(states // self.shape.hidden, slopes=True)
        if head or not logits:
            saved += [self.tape.new(4 * states)] if width < 4 else [gathered]
        del hidden, gathered

        # 3. Gradients of the states, scattered back to all tokens.
        exact = [self.tape.new(4 * states) for _ in range(2)]
        del saved, exact
        narrow = self.tape.new(states * width)
        zeros = net.values(self.shape.hidden)
        g = [net.values(self.shape.hidden)]
        del narrow, zeros

        # 4. Backward through the layers; a checkpointed one runs its forward once more.
        positions = net.saved.pop()
        g = [net.norm_back(g)]
        for index in reversed(range(self.shape.layers)):
            if self._is_recomputed(index):
                x = checkpoints.pop()
                net.layer(x, True, first=index == 0)
                net.casts.clear()
                del x
            net.layer_back(g, first=index == 0)
        del positions, ids

    def logprobs(self, count: int, *, slopes: bool, entropy: bool = False) -> list[Block]:
        """Allocate `chosen_logprobs` of `count` states; returns what its backward needs.

        Args:
            count: Hidden states.
            slopes: Gradients are computed in the forward, chunk by chunk.
            entropy: The entropy is computed too.
        """
        tape, h, v, width = self.tape, self.shape.hidden, self.shape.vocabulary, self.device.width
        saved = [tape.new(count * h * width)] if slopes else []
        numbers = tape.new(4 * count * (2 if entropy else 1))
        max_rows = max(1, LOGITS_PER_CHUNK // v)
        logits: Block | None = None
        probabilities: Block | None = None
        done = 0
        while done < count and done < 2 * max_rows:  # the third chunk is like the second
            rows = min(max_rows, count - done)
            # 1. Logits of a chunk, in the compute dtype and then in fp32.
            raw = tape.new(rows * v * width, LOGITS)
            chunk_logits = raw if width == 4 else tape.new(rows * v * 4, LOGITS)
            del raw
            # The chunk before lives until here, as in the loop that this follows.
            logits = chunk_logits
            del chunk_logits
            if self.device.kind == "cuda":
                tape.new(rows * v * 4, LOGITS)  # inside logsumexp
            # 2. Probabilities, which the slopes and the entropy share.
            if slopes or entropy:
                chunk_probabilities = tape.new(rows * v * 4, LOGITS)
                probabilities = chunk_probabilities
                del chunk_probabilities
            if entropy:
                tape.new(rows * v * 4, LOGITS)
            # 3. Gradients of the chunk's states, multiplied in the compute dtype and kept in fp32.
            if slopes:
                cast = tape.new(rows * v * width, LOGITS) if width < 4 else None
                slope = tape.new(rows * h * width)
                del cast
                exact = [tape.new(rows * h * 4) for _ in range(2)]
                del slope, exact
            done += rows
        del numbers, logits, probabilities
        return saved


def resident(run: Pass, *, rank: int, adapters: int) -> list[Block]:
    """Allocate what is resident in every phase: the base, and `adapters` adapters in fp32."""
    tape, shape = run.tape, run.shape
    blocks = [
        tape.new(shape.nf4_bytes(), "weights in 4 bit"),
        tape.new(shape.plain_bytes(run.device.width), "embeddings, head and norms"),
    ]
    if adapters:
        blocks.append(tape.new(4 * shape.adapter_weights(rank) * adapters, ADAPTERS))
    return blocks
