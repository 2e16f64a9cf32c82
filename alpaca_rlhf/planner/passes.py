"""Whole passes on the tape: a micro-batch that is trained on, one that is scored, a decode."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_rlhf.core.sizes import LOGITS_PER_CHUNK
from alpaca_rlhf.planner.layers import ADAPTERS, Device, Layers
from alpaca_rlhf.planner.shapes import Shape
from alpaca_rlhf.planner.tape import Block, Tape

LOGITS, CACHE, IDS = "logits", "keys and values", "token ids and masks"


@dataclass(frozen=True)
class Rows:
    """Sequences of one length."""

    count: int
    """How many."""
    prompt: int
    """Tokens of each prompt."""
    completion: int
    """Tokens of each completion."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Pass:
    """Runs packed rows through the base and one adapter."""

    tape: Tape
    """Counts."""
    shape: Shape
    """The model."""
    device: Device
    """How it computes."""
    rank: int
    """LoRA's; 0 without an adapter."""
    checkpointing: bool = False
    """Whether a layer's activations are made anew in the backward."""
    trainable: bool = False
    """Whether the adapter's weights ask for gradients."""

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
        )

    def _ids(self, rows: Rows) -> Block:
        """Ids, positions, places in the tables, and the completions once more with their mask."""
        tokens = rows.count * rows.length
        return self.tape.new(8 * 6 * tokens + 9 * rows.count * rows.completion, IDS)

    def _positions(self, net: Layers) -> list[Block]:
        size = self.shape.head_size
        parts = [net.values(size // 2, 4)] + [net.values(size, 4) for _ in range(3)]
        del parts[0]
        made = [net.values(size) for _ in range(2)]
        parts.clear()
        return made

    def hidden(self, net: Layers, *, saves: bool, checkpoints: list[Block] | None = None) -> Block:
        """(N, H) last hidden states."""
        x = net.values(self.shape.hidden)
        positions = self._positions(net)
        for number in range(self.shape.layers):
            if checkpoints is not None:
                checkpoints.append(x)
            x = net.layer(x, saves and checkpoints is None, first=number == 0)
        out = net.norm(x, saves)
        if saves:
            net.saved.append(tuple(positions))
        net.casts.clear()
        return out

    def scored(
        self,
        rows: Rows,
        chosen: int,
        *,
        values: bool = False,
        decoding: bool = False,
        dense: bool = False,
    ) -> None:
        """A forward without gradients.

        Args:
            rows: What is in it.
            chosen: Tokens a row whose log-probability and entropy are wanted; 0 reads a score.
            values: Whether a scalar head reads the states of those tokens too.
            decoding: Whether the layers are ready for decoding.
            dense: Whether they then have a 16-bit copy.
        """
        ids = self._ids(rows)
        net = self._layers(rows, decoding=decoding, dense=dense)
        hidden = self.hidden(net, saves=False)
        width, count = self.device.width, rows.count * max(1, chosen)
        states = self.tape.new(count * self.shape.hidden * width)
        del hidden
        if chosen:
            self.chosen(count, slopes=False, entropy=True)
        if values and width < 4:
            self.tape.new(4 * count * self.shape.hidden)
        del ids, states

    def trained(
        self,
        rows: Rows,
        chosen: int,
        *,
        logits: bool = True,
        head: bool = False,
        accumulates: bool = True,
    ) -> None:
        """Forward and backward of a micro-batch.

        Args:
            rows: What is in it.
            chosen: Tokens a row that carry loss; 0 is a score at each row's end.
            logits: Whether the loss is of their log-probabilities; else of a head's values.
            head: Whether a head reads the same states beside, without a way back into them.
            accumulates: Whether gradients lie there already.
        """
        ids = self._ids(rows)
        net = self._layers(rows, accumulates=accumulates)
        checkpoints: list[Block] | None = [] if self.checkpointing else None
        hidden = self.hidden(net, saves=True, checkpoints=checkpoints)
        width, states = self.device.width, rows.count * max(1, chosen) * self.shape.hidden
        gathered = self.tape.new(states * width)
        kept: list[Block] = []
        if chosen and logits:
            kept += self.chosen(states // self.shape.hidden, slopes=True)
        if head or not logits:
            kept += [self.tape.new(4 * states)] if width < 4 else [gathered]
        del hidden, gathered
        wide = [self.tape.new(4 * states) for _ in range(2)]
        del kept, wide
        narrow = self.tape.new(states * width)
        zeros = net.values(self.shape.hidden)
        g = [net.values(self.shape.hidden)]
        del narrow, zeros
        positions = net.saved.pop()
        g = [net.norm_back(g)]
        for number in reversed(range(self.shape.layers)):
            if checkpoints is not None:
                x = checkpoints.pop()
                net.layer(x, True, first=number == 0)
                net.casts.clear()
                del x
            net.layer_back(g, first=number == 0)
        del positions, ids

    def chosen(self, count: int, *, slopes: bool, entropy: bool = False) -> list[Block]:
        """`target_logprobs` of so many states; returns what its backward needs."""
        tape, h, v, width = self.tape, self.shape.hidden, self.shape.vocabulary, self.device.width
        kept = [tape.new(count * h * width)] if slopes else []
        numbers = tape.new(4 * count * (2 if entropy else 1))
        rows = max(1, LOGITS_PER_CHUNK // v)
        logits: Block | None = None
        probabilities: Block | None = None
        done = 0
        while done < count and done < 2 * rows:  # the third chunk is like the second
            now = min(rows, count - done)
            raw = tape.new(now * v * width, LOGITS)
            logits_now = raw if width == 4 else tape.new(now * v * 4, LOGITS)
            del raw
            logits = logits_now
            del logits_now
            if self.device.kind == "cuda":
                tape.new(now * v * 4, LOGITS)  # inside logsumexp
            if slopes or entropy:
                made = tape.new(now * v * 4, LOGITS)
                probabilities = made
                del made
            if entropy:
                tape.new(now * v * 4, LOGITS)
            if slopes:
                cast = tape.new(now * v * width, LOGITS) if width < 4 else None
                slope = tape.new(now * h * width)
                del cast
                parts = [tape.new(now * h * 4) for _ in range(2)]
                del slope, parts
            done += now
        del numbers, logits, probabilities
        return kept


def resident(
    tape: Tape,
    shape: Shape,
    device: Device,
    *,
    rank: int,
    adapters: int,
) -> list[Block]:
    """What lies there whatever is done: the base, and so many adapters in fp32."""
    made = [
        tape.new(shape.nf4_bytes(), "weights in 4 bit"),
        tape.new(shape.plain_bytes(device.width), "embeddings, head and norms"),
    ]
    if adapters:
        made.append(tape.new(4 * shape.adapter_weights(rank) * adapters, ADAPTERS))
    return made
