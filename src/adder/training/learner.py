"""One update of a model, and everything it changes: weights, moments, the carried state."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adder.data.windows import Window
from adder.errors import AdderError, DamagedFile, UsageError
from adder.layers.parameters import parameter_groups
from adder.layers.state import State, detach_state, flatten_state, map_state, unflatten_state
from adder.models.language_model import LanguageModel
from adder.training.config import TrainingConfig
from adder.training.device import autocast
from adder.training.diagnosis import find_nonfinite, find_nonfinite_parameter


class NotFinite(AdderError):
    """A loss or a gradient is NaN or infinite; the message names where it came from."""


class Learner:
    """A model with its optimiser and, where rows continue from step to step, their states."""

    def __init__(self, model: LanguageModel, config: TrainingConfig, device: torch.device) -> None:
        self.model = model.to(device).train()
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

    def step(self, window: Window, learning_rate: float) -> tuple[float, float]:
        """Make one update; return the loss in nats per token and the gradient norm before clipping.

        Raises:
            NotFinite: the loss or the gradient is; the weights are then those before the step.
        """
        inputs = window.inputs.to(self.device).chunk(self.config.accumulation)
        targets = window.targets.to(self.device).chunk(self.config.accumulation)
        states: list[State | None] = [None] * len(inputs)
        if self.config.carry_state:
            states = [
                self.model.initial_state(len(rows))
                if window.starts or self.states is None
                else self.states[number]
                for number, rows in enumerate(inputs)
            ]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        after: list[State] = []
        for rows, wanted, state in zip(inputs, targets, states, strict=True):
            loss, new_state = self._loss(rows, wanted, state)
            (loss / len(inputs)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / len(inputs)
            if state is not None:
                after.append(detach_state(new_state))
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip or float("inf"), foreach=True
        )
        # The one wait for the device in a step, before the update: no bad one is ever made.
        loss_value, norm_value = torch.stack((total, norm.to(total))).tolist()
        if not (abs(loss_value) < float("inf") and abs(norm_value) < float("inf")):
            place = self._find_nonfinite(list(zip(inputs, targets, states, strict=True)))
            if place is None and abs(loss_value) < float("inf"):
                place = f"the gradient norm, {norm_value}"
            what = "gradient" if abs(loss_value) < float("inf") else f"loss ({loss_value})"
            raise NotFinite(f"the {what} is not finite: first in {place or 'the loss'}")
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = learning_rate * rate
        self.optimizer.step()
        self.states = after if self.config.carry_state else None
        return loss_value, norm_value

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
        if self.config.carry_state and any(key.startswith("state.") for key in tensors):
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
        like = self.model.initial_state(self.config.batch_size)
        try:
            state = unflatten_state(flat, like)
        except UsageError as error:
            raise DamagedFile(f"{name} holds a carried state that does not fit: {error}") from None
        return map_state(lambda tensor: tensor.clone().to(self.device), state)

    def _loss(self, rows: Tensor, wanted: Tensor, state: State | None) -> tuple[Tensor, State]:
        with autocast(self.device, self.config.precision):
            output = self.model(rows, state=state)
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), wanted.flatten())
        return loss, output.state

    def _find_nonfinite(self, parts: list[tuple[Tensor, Tensor, State | None]]) -> str | None:
        for rows, wanted, state in parts:
            place = find_nonfinite(self.model, state, partial(self._loss, rows, wanted, state))
            if place is not None:
                return place
        return None
