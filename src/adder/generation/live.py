"""A classifier reading one sequence, as an object: what it makes of all that it has read so far."""

import numpy.typing as npt
import torch
from torch import Tensor

from adder.errors import UsageError
from adder.layers.state import State
from adder.models.classifier import SequenceClassifier


class LiveClassifier:
    """A classifier that reads one sequence as it comes.

        live = LiveClassifier(model)
        for samples in stream:
            live.feed(samples)
            print(live.position, live.label, live.probability)

    Any cutting of a sequence into pieces gives the same probabilities but for rounding, and the cost of
    a step does not grow with what was read.

    Args:
        model: it is used as it is (call `model.eval()` where that matters).
        rate: as the model takes it.
    """

    def __init__(self, model: SequenceClassifier, rate: float = 1.0) -> None:
        self.model = model
        self.rate = rate
        self._device = model.decoder.weight.device
        self._state: State = model.initial_state(1)
        self._probabilities: Tensor | None = None
        self._position = 0

    @property
    def position(self) -> int:
        """How many steps were read."""
        return self._position

    @property
    def probabilities(self) -> Tensor:
        """(classes,) on the CPU. UsageError before the first step."""
        if self._probabilities is None:
            raise UsageError("the classifier has read nothing yet: feed it at least one step first")
        return self._probabilities

    @property
    def label(self) -> str:
        """The name of the likeliest class, or its number where the model has no names."""
        index = int(self.probabilities.argmax())
        return label_of(self.model, index)

    @property
    def probability(self) -> float:
        """That of the likeliest class."""
        return float(self.probabilities.max())

    @torch.no_grad()
    def feed(self, steps: npt.ArrayLike | Tensor) -> None:
        """Read tokens (l,) or values (l, d_input), in order."""
        inputs = torch.as_tensor(steps, device=self._device)[None]
        output = self.model(inputs, state=self._state, rate=self.rate)
        assert output.state is not None
        probabilities = output.logits[0].double().softmax(-1).cpu()
        # All at once, so that an interrupt leaves a stream that is right.
        self._state, self._probabilities, self._position = (
            *(output.state, probabilities),
            self._position + inputs.shape[1],
        )


def label_of(model: SequenceClassifier, index: int) -> str:
    """The name of a class."""
    return model.config.labels[index] if model.config.labels else str(index)
