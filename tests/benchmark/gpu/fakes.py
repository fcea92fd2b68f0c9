"""Stand-ins for the peers, of our own functions and of plain loops: what calls them is what is tested."""

from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from adder.integrations import mamba_ssm as ours


def simple_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> tuple[Tensor, None]:
    """S[t] = exp(g[t]) S[t-1] + k[t] v[t]^T, o[t] = scale q[t] S[t], on (b l h n) and (b l h p)."""
    state = torch.zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])
    out = []
    for t in range(q.shape[1]):
        added = k[:, t].float().unsqueeze(-1) * v[:, t].float().unsqueeze(-2)
        state = g[:, t, :, None, None].exp() * state + added
        out.append(scale * (q[:, t].float().unsqueeze(-1) * state).sum(-2))
    return torch.stack(out, 1).to(v.dtype), None


class Model(nn.Module):
    """A language model with mamba_ssm's calls."""

    def __init__(self, config: SimpleNamespace, device: torch.device, dtype: torch.dtype):
        super().__init__()
        sizes = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, **sizes)
        self.head = nn.Linear(config.d_model, config.vocab_size, **sizes)

    def forward(self, ids: Tensor, num_last_tokens: int = 0) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.embedding(ids[:, -num_last_tokens:])))

    def generate(self, input_ids: Tensor, max_length: int, cg: bool, top_k: int) -> Tensor:
        assert (cg, top_k) == (False, 1)
        while input_ids.shape[1] < max_length:
            chosen = self(input_ids, 1).logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, chosen], dim=1)
        return input_ids


def modules() -> dict[str, ModuleType]:
    """Module names as the peers have them, with what the benchmark takes from each."""
    parts: dict[str, dict[str, object]] = {
        "mamba_ssm": {"__version__": "2.0", "Mamba": ours.Mamba},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": ours.selective_scan_fn},
        "mamba_ssm.ops.triton.ssd_combined": {
            "mamba_chunk_scan_combined": ours.mamba_chunk_scan_combined
        },
        "mamba_ssm.models": {},
        "mamba_ssm.models.config_mamba": {"MambaConfig": SimpleNamespace},
        "mamba_ssm.models.mixer_seq_simple": {"MambaLMHeadModel": Model},
        "causal_conv1d": {"__version__": "1.0", "causal_conv1d_fn": ours.causal_conv1d_fn},
        "fla": {"__version__": "0.5"},
        "fla.ops": {},
        "fla.ops.simple_gla": {"chunk_simple_gla": simple_gla},
    }
    found = {}
    for name, names in parts.items():
        found[name] = ModuleType(name)
        vars(found[name]).update(names)
    return found
