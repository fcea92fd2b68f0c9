"""A process that holds one model and measures it when it is asked to: other libraries' models, and ours.

    python peer_worker.py '{"subject": "transformers", "precision": "float32", "training": false, "config": {...}}'

It answers with one JSON object a line: first `{"ready": true, ...}` or `{"missing": reason}`, then one answer
for each request it reads. Nothing of adder is imported here, so that another interpreter can run this file
(`adder bench cpu --peer-python`); `worker.py` runs the same loop around our own model.
"""

import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIECE = 2048  # tokens that are read at once where a text may be read in pieces
WARM_UP_BELOW = 2.0  # seconds: what takes longer is not run once in vain


class Missing(Exception):
    """The library is not installed here."""


class Subject:
    """One model, made of a config {vocab_size, d_model, n_layer} and the precision of its weights.

    `ids` are (batch, length); a state is whatever the next call wants back.
    """

    continues = False  # whether `read` can go on from a state of many tokens
    decodes_by = "state"  # "steps": it gets to a state token by token; "reading again": it has none

    model: nn.Module

    def __init__(self, config: dict[str, Any], precision: str):
        raise NotImplementedError

    @staticmethod
    def library() -> str:
        """Import what is needed and return its version; Missing where it is not installed."""
        raise NotImplementedError

    def read(self, ids: Tensor, state: Any) -> Any:
        """Read a text and work out the logits of its last token; return the state, or None."""
        raise NotImplementedError

    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token a row (batch, 1); return the likeliest next ones (batch, 1) and the state."""
        raise NotImplementedError

    def prepare(self, ids: Tensor) -> Any:
        """Return the state after a text, by any way that gets there."""
        state = None
        for piece in torch.split(ids, PIECE if self.continues else ids.shape[1], dim=1):
            state = self.read(piece, state)
        return state

    def loss(self, ids: Tensor) -> Tensor:
        """Return the mean loss over a text, to be differentiated."""
        raise NotImplementedError

    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers, a tied one counted once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        found = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
        return sum(storage.nbytes() for storage in found.values())


class Transformers(Subject):
    """transformers' MambaForCausalLM, as `from_config` makes it: eager."""

    @staticmethod
    def library() -> str:
        return version_of("transformers", "transformers.models.mamba.modeling_mamba")

    def __init__(self, config: dict[str, Any], precision: str):
        import transformers

        transformers.logging.set_verbosity_error()
        sizes = transformers.MambaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["d_model"],
            num_hidden_layers=config["n_layer"],
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model = transformers.MambaForCausalLM(sizes).to(getattr(torch, precision))
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

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.norm_f(self.mamba(self.embedding(ids))), self.embedding.weight)

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
        self.model = MambaPyModel(**config).to(getattr(torch, precision))
        self.sizes = self.model.mamba.config

    def read(self, ids: Tensor, state: Any) -> Any:
        del state
        self.model(ids)

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

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.layers(self.embedding(ids)), self.embedding.weight)


class Loop(Subject):
    """mamba-minimal's way: no state, so each token that is written reads the whole text again."""

    decodes_by = "reading again"

    @staticmethod
    def library() -> str:
        return "of this benchmark"

    def __init__(self, config: dict[str, Any], precision: str):
        self.model = LoopModel(**config).to(getattr(torch, precision))

    def read(self, ids: Tensor, state: Any) -> Any:
        del state
        self.model(ids)
        return ids

    def prepare(self, ids: Tensor) -> Any:
        return ids

    def write(self, last: Tensor, state: Any) -> tuple[Tensor, Any]:
        ids = torch.cat([state, last], dim=1)
        return self.model(ids)[:, -1:].argmax(-1), ids

    def loss(self, ids: Tensor) -> Tensor:
        return next_token_loss(self.model(ids), ids)


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


class Measured:
    """Answers requests about one subject."""

    def __init__(self, kind: type[Subject], job: dict[str, Any]):
        """Make the model with its memory counted; a training's weights are float32, whatever it computes in."""
        version, self.job = kind.library(), job
        training = job["training"]
        job = {**job, "precision": "float32"} if training else job
        self.base = warmed_base(kind, job)
        torch.manual_seed(0)
        self.subject = subject = kind(job["config"], job["precision"])
        subject.model.train(training)
        self.facts = {
            "weight_bytes": subject.weight_bytes(),
            "continues": subject.continues,
            "decodes_by": subject.decodes_by,
            "version": version,
            "torch": torch.__version__,
        }
        self.states: dict[tuple[int, int], Any] = {}
        self.warm: set[tuple[object, ...]] = set()
        self.optimizer: torch.optim.Optimizer | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure what a request asks for: {kind, context, batch, threads, start, tokens}."""
        torch.set_num_threads(request["threads"])
        act = {"prefill": self.prefill, "decode": self.decode, "train": self.train}[request["kind"]]
        key = tuple(request[name] for name in ("kind", "context", "batch", "threads"))
        if key not in self.warm and not request["start"]:
            self.warm.add(key)
            answer = self.measured(act, request)
            if sum(answer["seconds"]) > WARM_UP_BELOW:
                return answer
        return self.measured(act, request)

    def measured(
        self,
        act: Callable[[dict[str, Any]], tuple[list[int], list[float]]],
        request: dict[str, Any],
    ) -> dict[str, Any]:
        """Run it once; the memory is the most that was held above what was before the model."""
        exact = reset_peak()
        tokens, seconds = act(request)
        peak = peak_bytes() if exact else None
        above = None if peak is None or self.base is None else peak - self.base
        return {"tokens": tokens, "seconds": seconds, "peak_bytes": above}

    def ids(self, request: dict[str, Any]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        shape = (request["batch"], request["context"])
        return torch.randint(0, self.job["config"]["vocab_size"], shape, generator=generator)

    @torch.no_grad()
    def prefill(self, request: dict[str, Any]) -> tuple[list[int], list[float]]:
        start, batch = request["start"], request["batch"]
        ids = self.ids(request)[:, start:]
        state = self.states[batch, start] if start else None
        tokens, seconds = [], []
        for piece in torch.split(ids, PIECE if self.subject.continues else ids.shape[1], dim=1):
            begin = time.perf_counter()
            state = self.subject.read(piece, state)
            seconds.append(time.perf_counter() - begin)
            tokens.append(piece.numel())
        if state is not None:
            self.states[batch, request["context"]] = state
        return tokens, seconds

    @torch.no_grad()
    def decode(self, request: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Write tokens until there are enough of them, or the time is over."""
        key = (request["batch"], request["context"])
        if key not in self.states:
            self.states[key] = self.subject.prepare(self.ids(request))
        state, last = self.states[key], torch.zeros(request["batch"], 1, dtype=torch.long)
        begin, count = time.perf_counter(), 0
        while count < request["tokens"] and (
            not count or time.perf_counter() - begin < self.job["decode_seconds"]
        ):
            last, state = self.subject.write(last, state)
            count += 1
        return [count * request["batch"]], [time.perf_counter() - begin]

    def train(self, request: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Forward, backward, and AdamW."""
        ids = self.ids(request)
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.subject.model.parameters(), 1e-4, fused=True)
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.job["precision"] == "bfloat16"):
            loss = self.subject.loss(ids)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return [ids.numel()], [time.perf_counter() - begin]


def reset_peak() -> bool:
    """Give free memory back, and count the peak anew; False where the system cannot."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return False
    return True


def peak_bytes(process: str = "self") -> int | None:
    """The most memory that a process held (this one since `reset_peak`), None where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    marks = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0].split()[1]) * 1024 if marks else None


def warmed_base(kind: type[Subject], job: dict[str, Any]) -> int | None:
    """Bytes that this process holds once its libraries have done the same to a tiny model.

    Much of PyTorch is loaded when it is first used; that is not the model's memory.
    """
    subject = kind({"vocab_size": 16, "d_model": 32, "n_layer": 1}, job["precision"])
    ids = torch.zeros(1, 8, dtype=torch.long)
    if job["training"]:
        torch.autograd.backward(subject.loss(ids))
    else:
        with torch.no_grad():
            subject.write(ids[:, :1], subject.prepare(ids))
    del subject
    reset_peak()
    return peak_bytes()


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """Announce the subject of this process's job, and answer requests until there are no more."""
    # Libraries print what they like: the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        subject = make(json.loads(sys.argv[1]))
    except Missing as reason:
        say(answers, {"missing": str(reason)})
        return
    except Exception as error:  # told to the process that asked, which shows it
        say(answers, {"missing": f"{type(error).__name__}: {error}"})
        return
    say(answers, {"ready": True, **subject.facts})
    for line in sys.stdin:
        try:
            say(answers, subject.answer(json.loads(line)))
        except Exception as error:  # told to the process that asked, which shows it
            say(answers, {"error": f"{type(error).__name__}: {error}"})


def say(answers: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)


SUBJECTS: dict[str, type[Subject]] = {
    "transformers": Transformers,
    "mambapy": MambaPy,
    "loop": Loop,
}

if __name__ == "__main__":
    serve(lambda job: Measured(SUBJECTS[job["subject"]], job))
