"""The one shape of the benchmarks: a small random LLaMA, and the FLOPs that its parts must cost.

8 layers of width 256, a vocabulary of 8,192: a repeat takes seconds on two cores. The output head
has a quarter of the weights, as in Llama-3.2-1B (a fifth); in LLaMA-2-7B it is a fiftieth, so what
is saved at the head counts for more here than there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PAD, BOS = 0, 1


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA with as many key heads as query heads, and of its adapters."""

    hidden: int = 256
    """Width H."""
    inner: int = 704
    """Width of the feed-forward layer."""
    layers: int = 8
    """Decoder layers."""
    heads: int = 8
    """Attention heads."""
    vocabulary: int = 8192
    """Tokens V; the last one ends a completion."""
    rank: int = 16
    """LoRA rank, on every linear layer."""

    @property
    def eos(self) -> int:
        """The token that ends a completion."""
        return self.vocabulary - 1

    @property
    def _linears(self) -> list[tuple[int, int]]:
        attention = [(self.hidden, self.hidden)] * 4
        return attention + [(self.hidden, self.inner)] * 2 + [(self.inner, self.hidden)]

    @property
    def base(self) -> int:
        """Weights in the linear layers of one decoder layer."""
        return sum(i * o for i, o in self._linears)

    @property
    def lora(self) -> int:
        """Weights of one adapter in one decoder layer."""
        return sum(self.rank * (i + o) for i, o in self._linears)

    # FLOPs; a product of a weight with a token costs 2 a weight.

    def forward(self, tokens: int) -> int:
        """One sequence through the layers with an adapter; attention looks back only."""
        attention = 2 * self.hidden * tokens * (tokens + 1)  # 2 H (t + t) at position t
        return self.layers * (2 * (self.base + self.lora) * tokens + attention)

    def backward(self, tokens: int) -> int:
        """The gradient of one adapter: through the frozen weights, but not for them.

        The first layer's query, key and value need none for their input, which is an embedding.
        """
        attention = 4 * self.hidden * tokens * (tokens + 1)
        whole = self.layers * (2 * self.base * tokens + 4 * self.lora * tokens + attention)
        spared = 3 * (self.hidden * self.hidden + self.rank * self.hidden)
        return whole - 2 * spared * tokens

    def head(self, tokens: int) -> int:
        """Logits of so many positions; their gradient costs the same again."""
        return 2 * self.hidden * self.vocabulary * tokens

    def ppo_floor(
        self, lengths: Sequence[tuple[int, int]], epochs: int, *, separate_value: bool
    ) -> int:
        """FLOPs that any correct PPO update of these (prompt, completion) lengths must do.

        Every token of prompt and completion but the last passes once through policy (decoding, with
        a cache), reference and, if it is an adapter of its own, value; with the last through the
        reward model; then `epochs` times forwards and backwards through policy, and value if
        separate. Logits at completion tokens only. No padding, nothing recomputed, old
        log-probabilities from decoding; a value on the policy's own states costs nothing.
        """
        total = 0
        for prompt, completion in lengths:
            read = prompt + completion - 1
            trained = self.forward(read) + self.backward(read)
            total += self.forward(read) + self.head(completion)  # decoding
            total += self.forward(read) + self.head(completion)  # reference
            total += self.forward(read + 1)  # reward
            total += epochs * (trained + 2 * self.head(completion))
            if separate_value:
                total += self.forward(read) + epochs * trained
        return total


SHAPE = Shape()


def write_checkpoint(folder: Path, shape: Shape = SHAPE) -> Path:
    """A random LLaMA of the shape in bf16 with a tokenizer of its own, as a checkpoint.

    It never says pad, bos or eos of its own accord, so lengths can be forced: one dimension of
    every embedding is a constant, and those three rows of the output head weigh it heavily.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=shape.eos,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.2
        model.lm_head.weight[[PAD, BOS, shape.eos]] = 0.0
        model.lm_head.weight[[PAD, BOS, shape.eos], 0] = -8.0
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=shape.eos
    )
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    write_tokenizer(folder, shape.vocabulary)
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of so many words, the last of which is eos."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", *(f"t{i}" for i in range(2, vocabulary - 1)), "</s>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def random_ids(count: int, seed: int, shape: Shape = SHAPE) -> list[int]:
    """Ordinary tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, shape.eos, (count,), generator=generator).tolist()
