"""The models of other libraries, and the loop over time that the field starts from."""

import importlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .serve import Missing, Subject


class Transformers(Subject):
    """transformers' MambaForCausalLM or Mamba2ForCausalLM, as `from_config` makes it: eager."""

    @staticmethod
    def library() -> str:
        return version_of("transformers", "transformers.models.mamba.modeling_mamba")

    def __init__(self, config: dict[str, Any], precision: str):
        import transformers

        transformers.logging.set_verbosity_error()
        sizes = {
            "vocab_size": config["vocab_size"],
            "hidden_size": config["d_model"],
            "num_hidden_layers": config["n_layer"],
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        }
        if config.get("layer") == "mamba2":
            heads = 2 * config["d_model"] // 64
            made = transformers.Mamba2Config(
                **sizes, num_heads=heads, n_groups=1, tie_word_embeddings=True
            )
            self.model = transformers.Mamba2ForCausalLM(made)
        else:
            self.model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
        self.model.to(getattr(torch, precision))
        # Releases before 5 want to be told that the first tokens are over.
        wanted = self.model.forward.__code__.co_varnames
        self.place = {"cache_position": torch.tensor([4])} if "cache_position" in wanted else {}

    def read(self, ids: Tensor, state: Any) -> Any:
        del state  # 5.23 reads on from a state wrongly: it starts from zero
        out = self.model.backbone(ids, use_cache=True)  # type: ignore[operator]
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        head(out.last_hidden_state[:, -1:].to(head.weight.dtype))
        return out.cache_params

    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        out = self.model(last, cache_params=state, use_cache=True, **self.place)
        return out.logits[:, -1:].argmax(-1), out.cache_params

    def loss(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.model(ids, labels=ids, use_cache=False).loss
        return loss


class MambaPyModel(nn.Module):
    """mambapy's LM without muP; its own class wants einops as well, for Mamba-2."""

    def __init__(self, vocab_size: int, d_model: int, n_layer: int):
        from mambapy.mamba import Mamba, MambaConfig, RMSNorm

        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.mamba = Mamba(MambaConfig(d_model=d_model, n_layers=n_layer))
        self.norm_f = RMSNorm(d_model)

    def forward(self, ids: Tensor, keep: int = 0) -> Tensor:
        """Return the logits of the last tokens; of all where none are to be kept."""
        x = self.norm_f(self.mamba(self.embedding(ids)))
        return F.linear(x[:, -keep:], self.embedding.weight)

    def step(self, token: Tensor, caches: Any) -> tuple[Tensor, Any]:
        x, caches = self.mamba.step(self.embedding(token), caches)
        return F.linear(self.norm_f(x), self.embedding.weight), caches


class MambaPy(Subject):
    """mambapy with its parallel scan; it has no way from a text read at once to a state."""

    decodes_by = "steps"

    @staticmethod
    def library() -> str:
        return version_of("mambapy", "mambapy.mamba")

    def __init__(self, config: dict[str, Any], precision: str):
        self.model = MambaPyModel(**only_mamba(config)).to(getattr(torch, precision))
        self.sizes = self.model.mamba.config

    def read(self, ids: Tensor, state: Any) -> Any:
        del state
        self.model(ids, keep=1)

    def prepare(self, ids: Tensor) -> Any:
        shape = (len(ids), self.sizes.d_inner, self.sizes.d_conv - 1)
        state = [(None, torch.zeros(shape)) for _ in range(self.sizes.n_layers)]
        for token in ids.unbind(1):
            _, state = self.write(token[:, None], state)
        return state

    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.model.step(last[:, 0], state)  # type: ignore[operator]
        return logits.argmax(-1, keepdim=True), state

    def loss(self, ids: Tensor) -> Tensor:
        return next_token_loss(self.model(ids), ids)


class LoopBlock(nn.Module):
    """A Mamba block whose scan is a Python loop over time, in the manner of mamba-minimal."""

    def __init__(self, d: int, n: int = 16, taps: int = 4):
        super().__init__()
        inner, self.n, self.rank = 2 * d, n, -(-d // 16)
        self.norm = nn.Parameter(torch.ones(d))
        self.in_proj = nn.Linear(d, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * n, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d, bias=False)

    def forward(self, residual: Tensor) -> Tensor:
        x = residual * torch.rsqrt(residual.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv(x.mT)[..., : x.shape[1]].mT)
        delta, B, C = self.x_proj(u).split([self.rank, self.n, self.n], dim=-1)
        delta = F.softplus(self.dt_proj(delta))
        decay = torch.exp(torch.einsum("bld,dn->bldn", delta, -torch.exp(self.A_log)))
        drive = torch.einsum("bld,bln,bld->bldn", delta, B, u)
        h, outputs = torch.zeros_like(decay[:, 0]), []
        for t in range(u.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            outputs.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
        y = torch.stack(outputs, dim=1) + u * self.D
        out: Tensor = self.out_proj(y * F.silu(z))
        return residual + out


class LoopModel(nn.Module):
    """The language model of `LoopBlock`s: its head is the embedding."""

    def __init__(self, vocab_size: int, d_model: int, n_layer: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.Sequential(*(LoopBlock(d_model) for _ in range(n_layer)))

    def forward(self, ids: Tensor, keep: int = 0) -> Tensor:
        """Return the logits of the last tokens; of all where none are to be kept."""
        return F.linear(self.layers(self.embedding(ids))[:, -keep:], self.embedding.weight)


class Loop(Subject):
    """mamba-minimal's way: no state, so each token that is written reads the whole text again."""

    decodes_by = "reading again"

    @staticmethod
    def library() -> str:
        return "of this benchmark"

    def __init__(self, config: dict[str, Any], precision: str):
        self.model = LoopModel(**only_mamba(config)).to(getattr(torch, precision))

    def read(self, ids: Tensor, state: Any) -> Any:
        del state
        self.model(ids, keep=1)
        return ids

    def prepare(self, ids: Tensor) -> Any:
        return ids

    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        ids = torch.cat([state, last], dim=1)
        return self.model(ids, keep=1).argmax(-1), ids

    def loss(self, ids: Tensor) -> Tensor:
        return next_token_loss(self.model(ids), ids)


def only_mamba(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of a Mamba; what is measured as Mamba-2 has no such peer."""
    if "layer" in config:
        raise Missing(f"knows no {config['layer']} here")
    return config


def version_of(library: str, module: str) -> str:
    """Import a module of a library that may not be there."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise Missing(f"{error.name} is not installed") from None
    return importlib.metadata.version(library)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean of -log p of each token after the first."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


SUBJECTS: dict[str, type[Subject]] = {
    "transformers": Transformers,
    "mambapy": MambaPy,
    "loop": Loop,
}
