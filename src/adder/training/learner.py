"""One update of a model, and everything it changes: weights, moments, the carried state."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import AdderError, DamagedFile, UsageError
from adder.layers.parameters import parameter_groups
from adder.layers.state import State, detach_state, flatten_state, map_state, unflatten_state
from adder.training.config import Settings
from adder.training.device import autocast
from adder.training.diagnosis import find_nonfinite, find_nonfinite_parameter


class NotFinite(AdderError):
    """A loss or a gradient is NaN or infinite; the message names where it came from."""


class Step(Protocol):
    """What one step reads, in as many equal shares as are asked for; `starts`: no row continues."""

    @property
    def starts(self) -> bool: ...

    def parts(self, count: int, device: torch.device) -> Sequence[tuple[Tensor, ...]]: ...


class Loss(NamedTuple):
    """The mean loss of a part, the state after it, and figures beside it: means over its rows."""

    loss: Tensor
    state: State | None
    figures: dict[str, Tensor]


# run(...) is model(...), in the precision of the training.
LossFunction = Callable[[Callable[..., Any], tuple[Tensor, ...], State | None], Loss]


def text_loss(run: Callable[..., Any], part: tuple[Tensor, ...], state: State | None) -> Loss:
    """Nats per token of (inputs, targets)."""
    inputs, targets = part
    output = run(inputs, state=state)
    loss = F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())
    return Loss(loss, output.state, {})


class Learner:
    """A model with its optimiser and, where rows continue from step to step, their states.

    Args:
        loss: what a part of a step costs.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Settings,
        device: torch.device,
        loss: LossFunction = text_loss,
    ) -> None:
        self.model = model.to(device).train()
        self.loss = loss
        self.config = config
        self.device = device
        self.states: list[State] | None = None
        groups = parameter_groups(model, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=device.type in ("cpu", "cuda"),
        )
        self._rates = [group["lr"] / config.learning_rate for group in self.optimizer.param_groups]

    def step(self, batch: Step, learning_rate: float) -> dict[str, float]:
        """Make one update; return loss, gradient_norm (before clipping) and the figures of the loss.

        Raises:
            NotFinite: the loss or the gradient is; the weights are then those before the step.
        """
        parts = batch.parts(self.config.accumulation, self.device)
        states: list[State | None] = [None] * len(parts)
        if self.config.carries:
            states = [
                self._initial_state(len(part[0]))
                if batch.starts or self.states is None
                else self.states[number]
                for number, part in enumerate(parts)
            ]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        figures: dict[str, Tensor] = {}
        after: list[State] = []
        for part, state in zip(parts, states, strict=True):
            loss, new_state, beside = self.loss(self._run, part, state)
            (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / len(parts)
            for name, value in beside.items():
                figures[name] = figures.get(name, torch.zeros_like(total)) + value / len(parts)
            if new_state is not None:
                after.append(detach_state(new_state))
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip or float("inf"), foreach=True
        )
        # The one wait for the device in a step, before the update: no bad one is ever made.
        loss_value, norm_value, *more = torch.stack(
            (total, norm.to(total), *figures.values())
        ).tolist()
        if not (abs(loss_value) < float("inf") and abs(norm_value) < float("inf")):
            place = self._find_nonfinite(list(zip(parts, states, strict=True)))
            if place is None and abs(loss_value) < float("inf"):
                place = f"the gradient norm, {norm_value}"
            what = "gradient" if abs(loss_value) < float("inf") else f"loss ({loss_value})"
            raise NotFinite(f"the {what} is not finite: first in {place or 'the loss'}")
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = learning_rate * rate
        self.optimizer.step()
        self.states = after if self.config.carries else None
        beside_values = dict(zip(figures, more, strict=True))
        return {"loss": loss_value, "gradient_norm": norm_value, **beside_values}

    def check_weights(self) -> None:
        """Raise NotFinite, naming the parameter, where an update has made one so."""
        place = find_nonfinite_parameter(self.model)
        if place is not None:
            raise NotFinite(f"an update went too far: first in {place}")

    def to_tensors(self) -> dict[str, Tensor]:
        """Moments, random generators, carried states: what the next step needs beside weights."""
        found: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["random.cuda"] = torch.cuda.get_rng_state(self.device)
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{name}.{key}"] = value
        for number, state in enumerate(self.states or []):
            for key, value in flatten_state(state).items():
                found[f"state.{number}.{key}"] = value
        return {key: value.detach().contiguous() for key, value in found.items()}

    def load_tensors(self, tensors: dict[str, Tensor], name: str) -> None:
        """Take what `to_tensors` gave; DamagedFile, naming `name`, where it does not fit."""
        try:
            torch.set_rng_state(tensors["random.cpu"].clone())
        except (KeyError, RuntimeError):
            raise DamagedFile(f"{name} holds no state of the random generator") from None
        if self.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"].clone(), self.device)
        self._load_moments(tensors, name)
        self.states = None
        if self.config.carries and any(key.startswith("state.") for key in tensors):
            self.states = [
                self._load_state(tensors, number, name)
                for number in range(self.config.accumulation)
            ]

    def _load_moments(self, tensors: dict[str, Tensor], name: str) -> None:
        saved = {key for key in tensors if key.startswith("optimizer.")}
        for parameter_name, parameter in self.model.named_parameters():
            if not saved:
                return
            moments = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                full = f"optimizer.{parameter_name}.{key}"
                shape = () if key == "step" else parameter.shape
                if full not in tensors or tensors[full].shape != shape:
                    raise DamagedFile(f"{name} lacks {full} of the shape {tuple(shape)}")
                moments[key] = tensors[full].clone().to(self.device)
            self.optimizer.state[parameter] = moments

    def _load_state(self, tensors: dict[str, Tensor], number: int, name: str) -> State:
        prefix = f"state.{number}."
        flat = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        like = self._initial_state(self.config.batch_size)
        try:
            state = unflatten_state(flat, like)
        except UsageError as error:
            raise DamagedFile(f"{name} holds a carried state that does not fit: {error}") from None
        return map_state(lambda tensor: tensor.clone().to(self.device), state)

    def _run(self, *arguments: Any, **named: Any) -> Any:
        with autocast(self.device, self.config.precision):
            return self.model(*arguments, **named)

    def _initial_state(self, rows: int) -> State:
        state: State = self.model.initial_state(rows)  # type: ignore[operator]
        return state

    def _find_nonfinite(self, parts: list[tuple[tuple[Tensor, ...], State | None]]) -> str | None:
        for part, state in parts:
            place = find_nonfinite(self.model, state, partial(self._loss_and_state, part, state))
            if place is not None:
                return place
        return None

    def _loss_and_state(
        self, part: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State | None]:
        return self.loss(self._run, part, state)[:2]
