"""A language model over Mamba or Mamba-2 blocks. Parameter names are those of mamba_ssm's checkpoints.

Mamba (Gu & Dao 2023, arXiv:2312.00752): blocks of norm, mixer and residual; initialisation as in its code.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers import QuantizedEmbedding, QuantizedLinear, State
from adder.layers.linear import Linear, is_bare
from adder.models.backbone import Backbone
from adder.models.checkpoint import Pretrained, expect_stored, load
from adder.models.config import LanguageModelConfig
from adder.models.conventions import (
    Conventions,
    add_shared,
    drop_shared,
    expect_tie_unadapted,
    refuse_unserved,
    share_of_loss,
)
from adder.models.decoder import Decoder
from adder.models.formats.weights import Weights
from adder.models.hub import find_folder
from adder.models.padding import Padding
from adder.models.published import Format, read_language_model, write_language_model
from adder.models.sampling import Sampler
from adder.models.writing import beam_search, write
from adder.ops import linear

# Tokens of all rows in one piece of a prompt: enough for the speed of a matrix product.
READ_AT_ONCE, SHORTEST_PIECE = 512, 64
READ_AT_ONCE_ELSEWHERE = 1 << 16  # on a GPU, which many tokens keep busy


class LanguageModelOutput(NamedTuple):
    """The mean loss where labels were given, logits (b l v), the state where one was given.

    A slice ends before a state that is None: output[1:] is what Hugging Face's Trainer takes for predictions, of which
    each must be a tensor.
    """

    loss: Float[Tensor, ""] | None
    logits: Float[Tensor, "b l v"]
    state: State | None

    def __getitem__(self, index: Any) -> Any:
        whole = tuple(self)
        return whole[:2][index] if isinstance(index, slice) and self.state is None else whole[index]


class LanguageModel(Conventions, Pretrained):
    """Mamba or Mamba-2 blocks between an embedding and a head: token ids (b l) to logits (b l v).

    Example:
        >>> model = LanguageModel(LanguageModelConfig(vocab_size=10, d_model=8, n_layer=2))
        >>> ids = torch.randint(0, 10, (2, 5))
        >>> model(ids).logits.shape
        torch.Size([2, 5, 10])
        >>> loss, logits, state = model(ids, labels=ids, state=model.initial_state(2))
        >>> model(ids[:, :1], state=state).logits.shape
        torch.Size([2, 1, 10])
    """

    config_class = LanguageModelConfig
    config: LanguageModelConfig

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        kind = Linear if config.weights == "float" else QuantizedLinear
        self.lm_head = kind(config.d_model, config.padded_vocab_size, bias=False)
        if config.weights == "float":
            self._initialise()
        else:
            self.requires_grad_(False)  # nothing can be trained through rounded weights
        self._tie()
        self.register_state_dict_post_hook(drop_shared)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(add_shared)  # type: ignore[no-untyped-call]

    def _tie(self) -> None:
        if not self.config.tie_embeddings:
            return
        self.lm_head.weight = self.backbone.embedding.weight
        if isinstance(self.backbone.embedding, QuantizedEmbedding):
            self.lm_head.scales = self.backbone.embedding.scales

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LanguageModel":
        """Move or convert the model. PyTorch keeps shared parameters shared, but not shared buffers."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.config.weights != "float":
            self._tie()
        return self

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype | None = None) -> "LanguageModel":
        """Return a published model, its parameters float32 or `dtype`, in evaluation mode.

        Args:
            path: a folder that `save_pretrained` wrote; one of Hugging Face's with a Mamba, FalconMamba or Mamba-2
                (safetensors, sharded or not); one of mamba_ssm's (safetensors, or pytorch_model.bin, of which nothing
                but tensors is read); or the name of one on the Hugging Face Hub, as "state-spaces/mamba-130m-hf",
                which huggingface_hub downloads once.
            dtype: in bfloat16 the projections, embedding and head run in bfloat16; the small parameters are widened
                where they are used, and residuals, sums and states of the scan stay float32.

        Raises:
            UsageError: there is no such model, or it is none that adder runs; the message names what it asks for.
            DamagedFile: a file is not what it should be; nothing of it was used.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise UsageError(f"from_pretrained: dtype is {dtype}, expected a floating point type")
        config, weights = read_language_model(find_folder(path))
        model = cls.unfilled(config, dtype or torch.float32, expect=weights)
        load(model, weights)
        return model.eval()

    @classmethod
    def unfilled(
        cls,
        config: LanguageModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        expect: Weights | None = None,
    ) -> "LanguageModel":
        """Return a model whose memory holds anything: nothing is drawn that would be overwritten.

        `expect` are weights that must fit it, or no memory is taken.
        """
        with torch.device("meta"):
            model = cls(config)
        if expect is not None:
            expect_stored(model, expect)
        model = model.to(dtype).to_empty(device=device)
        model._tie()
        return model

    def save_pretrained(self, path: str | Path, format: Format | None = None) -> None:
        """Write config.json and the weights into the folder `path`.

        Args:
            format: "huggingface" (which transformers and `from_pretrained` read), "mamba_ssm" (which mamba_ssm and
                `from_pretrained` read), or "adder", which has what the others lack, as rounded weights. None is Hugging
                Face's, or "adder" where that has no such model.

        Raises:
            UsageError: the format has no such model, and the message names what it lacks; or the config ties the
                head to the embedding, and the head has become another. Nothing was written.
        """
        if self.config.tie_embeddings and self.lm_head.weight is not self.backbone.embedding.weight:
            raise UsageError(
                "save_pretrained: lm_head.weight is not the embedding's, and config.tie_embeddings says it is: "
                "nothing was written"
            )
        write_language_model(self, Path(path), format)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Embedding normal, biases of projections zero, what is added to the residuals rescaled by 1 / sqrt(how often),
        as GPT-2 does."""
        nn.init.normal_(self.backbone.embedding.weight, std=self.config.initializer_range)
        for name, module in self.backbone.named_modules():
            if not isinstance(module, Linear):
                continue
            if name.endswith((".in_proj", ".out_proj")) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(".out_proj"):
                added = 2 if self.config.layer == "transformer" else 1
                module.weight /= math.sqrt(added * self.config.n_layer)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token: one entry for each layer."""
        return tuple(block.mixer.initial_state(batch_size) for block in self.backbone.blocks())

    def forward(
        self,
        input_ids: Int[Tensor, "b l"],
        attention_mask: Int[Tensor, "b l"] | None = None,
        labels: Int[Tensor, "b l"] | None = None,
        state: State | None = None,
        seq_idx: Int32[Tensor, "b l"] | None = None,
        logits_to_keep: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **unserved: object,
    ) -> LanguageModelOutput:
        """Return logits, loss and state.

        Args:
            input_ids: tokens, each below config.vocab_size.
            attention_mask: of these ids, zero where one is padding, at any place of a row: the others get the logits,
                the loss and the state they have without it. What stands for the padding means nothing.
            labels: the loss is the mean of -log p(labels[t]) given the tokens before t, for t >= 1; -100 is left
                out, and so is the first token of each packed sequence.
            state: what the model remembers of the text before; see `initial_state`. Returned exactly when given.
            seq_idx: packed sequences, non-decreasing along the length.
            logits_to_keep: logits of the last so many tokens alone, all of them where there are fewer; None means all.
                A prompt needs its last: the head costs a third of a small model. Padding is no token here: each row
                ends with its last one.
            num_items_in_batch: from Hugging Face's Trainer, the number of labels in all the pieces of a batch, each
                row's first not counted: the loss is this piece's share of the batch's mean.
            unserved: what PEFT passes to every model, as inputs_embeds; it must be None or False.

        Raises:
            UsageError: ids of another shape or outside the vocabulary, a mask of another shape, logits_to_keep
                below 1 or beside labels; or an adapter on the embedding or the head, where the two are tied.
        """
        refuse_unserved(unserved)
        if self.config.tie_embeddings:
            expect_tie_unadapted(self)
        if logits_to_keep is not None and (logits_to_keep < 1 or labels is not None):
            raise UsageError(
                f"LanguageModel: logits_to_keep is {logits_to_keep}, expected at least 1, and no labels beside it"
            )
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise UsageError(
                f"LanguageModel: input_ids has shape {tuple(input_ids.shape)}, expected (batch, length), "
                "both at least 1"
            )
        given = labels
        padding = Padding.of(attention_mask, input_ids)
        if padding is not None:
            input_ids = padding.ids(input_ids)
            labels = None if labels is None else padding.labels(labels)
            seq_idx = None if seq_idx is None else padding.seq_idx(seq_idx)
        self._check(input_ids)
        plain = labels is None and seq_idx is None and padding is None
        if state is not None and plain and Decoder.wanted(input_ids):
            decoder = Decoder(self)
            if decoder.serves(state):
                now, after = decoder.step(input_ids[:, 0], state)
                return LanguageModelOutput(None, now.unsqueeze(1), after)
        targets = None if labels is None else _targets(labels, seq_idx)
        if logits_to_keep is None:
            count = None if padding is None else padding.count
            hidden, state = self.backbone(input_ids, state, seq_idx, count)
            if padding is not None:
                hidden = padding.back(hidden)
                targets = None if targets is None else padding.back(targets)
        else:
            hidden, state = self._read(input_ids, state, seq_idx, padding, logits_to_keep)
        logits, loss = self._head(hidden), None
        if targets is not None:
            assert given is not None
            flat, targets = logits.flatten(0, 1).float(), targets.flatten()
            if num_items_in_batch is None:
                loss = F.cross_entropy(flat, targets)
            else:
                loss = share_of_loss(flat, targets, given, num_items_in_batch)
        return LanguageModelOutput(loss, logits, state)

    def _read(
        self,
        input_ids: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        padding: Padding | None,
        keep: int,
    ) -> tuple[Tensor, State | None]:
        """Return what lies before the head for the last `keep` tokens, and the state where one was given.

        Where no gradient is wanted a long input is read piece by piece, so that its activations stay in the cache and
        memory does not grow with it. Not with packed sequences: a state would leak where one starts with a piece.
        """
        batch, length = input_ids.shape
        at_once = READ_AT_ONCE if input_ids.device.type == "cpu" else READ_AT_ONCE_ELSEWHERE
        piece = max(SHORTEST_PIECE, at_once // batch)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or seq_idx is not None:
            piece = length
        wanted = state is not None
        if piece < length and state is None:
            state = self.initial_state(batch)
        kept = []
        for start in range(0, length, piece):
            ids = input_ids[:, start : start + piece]
            count = None if padding is None else padding.count_of(start, ids.shape[1])
            hidden, state = self.backbone(ids, state, seq_idx, count)
            if start + piece > length - keep:
                kept.append(hidden[:, max(0, length - keep - start) :])
        return torch.cat(kept, dim=1), state if wanted else None

    def _head(self, hidden: Float[Tensor, "b l d"]) -> Float[Tensor, "b l v"]:
        vocab_size, head = self.config.vocab_size, self.lm_head
        hidden = hidden.to(self.backbone.norm_f.weight.dtype)
        if is_bare(head) and head.bias is None and len(head.weight) > vocab_size:
            # The padding is not multiplied.
            return linear(hidden, head.weight[:vocab_size])
        return head(hidden)[..., :vocab_size]  # type: ignore[no-any-return]

    def _check(self, input_ids: Tensor) -> None:
        if torch.compiler.is_compiling() or input_ids.device.type != "cpu":
            return  # elsewhere the look would cost a synchronisation
        low, high = (int(each) for each in torch.aminmax(input_ids))
        if low < 0 or high >= self.config.vocab_size:
            raise UsageError(
                f"LanguageModel: input_ids holds {low if low < 0 else high}, "
                f"expected 0 to {self.config.vocab_size - 1}"
            )

    def generate(
        self,
        input_ids: Int[Tensor, "b l"],
        max_new_tokens: int,
        attention_mask: Int[Tensor, "b l"] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
    ) -> Int[Tensor, "b m"]:
        """Return input_ids with up to `max_new_tokens` more in each row, one pass and then one step a token.

        A row that has made the token `stop` is filled up with it; the others go on. For text, stop strings and
        streaming see `adder.Stream`.

        Args:
            attention_mask: zero where a row is padded, on either side; a row is written as it would be alone.
            num_beams: above 1, the most probable continuation that a beam search of so many beams finds, its
                log-probability divided by its length to the power `length_penalty`; nothing is drawn then.
        """
        if max_new_tokens < 0:
            raise UsageError(f"generate: max_new_tokens is {max_new_tokens}, expected at least 0")
        sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty)
        if num_beams == 1:
            return write(self, input_ids, max_new_tokens, attention_mask, sampler, seed, stop)
        if sampler not in (Sampler(), Sampler(temperature=0.0)):
            raise UsageError(
                "generate: a beam search draws nothing: leave the sampling options out"
            )
        return beam_search(
            self, input_ids, max_new_tokens, attention_mask, num_beams, length_penalty, stop
        )


def _targets(labels: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Return what each step's logits should say (b l): the label after it, -100 where there is none."""
    targets = labels[:, 1:]
    if seq_idx is not None:
        targets = targets.masked_fill(seq_idx[:, 1:] != seq_idx[:, :-1], -100)
    # The last logits have no target. Cutting the targets' side spares a copy of the logits, and one of their gradient.
    return F.pad(targets, (0, 1), value=-100)
