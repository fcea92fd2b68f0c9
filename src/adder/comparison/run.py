"""Runs a plan: part by part and model by model, within its time, keeping what was measured."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from adder.benchmark.timing import machine
from adder.comparison.match import match
from adder.comparison.plan import (
    PARTS,
    SHARES,
    SIZE,
    VOCABULARY,
    Plan,
    task_source,
    task_training,
)
from adder.comparison.quality import Answering, OutOfTime, Reading, Subject, train
from adder.comparison.results import Results
from adder.comparison.speed import generation_times, training_times
from adder.data.text import Text, read_source
from adder.errors import AdderError
from adder.models import LanguageModel
from adder.training.memory import memory_errors


class Run:
    """A comparison in progress; `results` holds what was measured so far, also when it is interrupted.

    Args:
        say: told the share of the time that is over, and what is measured now, in a few words.
    """

    def __init__(self, plan: Plan, say: Callable[[float, str], None] = lambda *_: None):
        self.plan, self._say = plan, say
        self._began = time.monotonic()
        self.text: Text | None = None
        if "quality" in plan.parts and "text" in plan.tasks:
            self.text = read_source(plan.source)
        self.device = torch.device(plan.device)
        self.results = Results(plan.to_dict(), _machine(self.device))
        for layer in plan.layers:
            found = match(layer, vocab_size=VOCABULARY, **SIZE)
            self.results.models.append(
                {
                    "layer": layer,
                    "d_model": found.config.d_model,
                    "parameters": found.parameters,
                    "difference": found.difference,
                }
            )

    def run(self) -> Results:
        """Measure everything that fits."""
        self._began = time.monotonic()
        end = self._began + self.plan.seconds
        try:
            for part in PARTS:
                if part not in self.plan.parts:
                    continue
                later = [each for each in PARTS[PARTS.index(part) + 1 :] if each in self.plan.parts]
                left = end - time.monotonic()
                deadline = time.monotonic() + left * (SHARES[part] if later else 1.0)
                getattr(self, f"_{part}")(deadline)
            self.results.complete = True
        finally:
            self.results.seconds = time.monotonic() - self._began
        return self.results

    def say(self, words: str) -> None:
        self._say((time.monotonic() - self._began) / self.plan.seconds, words)

    def _training(self, deadline: float) -> None:
        for layer, until in self._turns(deadline):
            model = self._build(layer, VOCABULARY, 0)
            with self._left_out("training", layer):
                times = training_times(
                    model, self.plan.lengths, limit=self.plan.limit, deadline=until
                )
                for length, seconds in times:
                    self.say(f"training: {layer}, {length} tokens")
                    self.results.training.append(
                        {"layer": layer, "length": length, "seconds": seconds}
                    )

    def _generation(self, deadline: float) -> None:
        for layer, until in self._turns(deadline):
            model = self._build(layer, VOCABULARY, 0)
            with self._left_out("generation", layer):
                times = generation_times(
                    model, self.plan.contexts, tokens=self.plan.tokens, deadline=until
                )
                for context, seconds, size in times:
                    self.say(f"generation: {layer} after {context} tokens")
                    self.results.generation.append(
                        {"layer": layer, "context": context, "seconds": seconds, "bytes": size}
                    )

    def _quality(self, deadline: float) -> None:
        jobs = [
            (seed, task, layer)
            for seed in self.plan.seeds
            for task in self.plan.tasks
            for layer in self.plan.layers
        ]
        for i, (seed, task, layer) in enumerate(jobs):
            now = time.monotonic()
            config = task_training(self.plan, task, seed)
            # Three times an equal share: models are not equally fast, and what one leaves is the others'.
            until = min(deadline, now + 3 * (deadline - now) / (len(jobs) - i))
            subject: Subject
            if task == "text":
                assert self.text is not None
                subject = Reading(self.text, config)
            else:
                source, lengths = task_source(self.plan, task)
                subject = Answering(source, config, lengths)
            model = self._build(layer, subject.vocab_size, seed)
            words = f"{task}: {layer}, seed {seed}"

            def say(step: int, words: str = words, steps: int = config.steps) -> None:
                if step % 10 == 0:
                    self.say(f"{words}, step {step}/{steps}")

            with self._left_out(task, layer):
                for found in train(model, subject, config, deadline=until, say=say):
                    self.results.quality.append(
                        {"layer": layer, "task": task, "seed": seed, **found._asdict()}
                        | {"tokens": config.steps * config.tokens_per_step}
                    )

    def _turns(self, deadline: float) -> Iterator[tuple[str, float]]:
        """Every model, and until when it may take: an equal share of what is left."""
        for i, layer in enumerate(self.plan.layers):
            now = time.monotonic()
            yield layer, now + (deadline - now) / (len(self.plan.layers) - i)

    @contextmanager
    def _left_out(self, part: str, layer: str) -> Iterator[None]:
        try:
            with memory_errors():
                yield
        except OutOfTime as error:
            self.results.leave_out(part, layer, str(error))
        except AdderError as error:  # memory that is not there, a loss that is not finite
            self.results.leave_out(part, layer, str(error))

    def _build(self, layer: str, vocab_size: int, seed: int) -> LanguageModel:
        torch.manual_seed(seed)
        config = match(layer, vocab_size=VOCABULARY, **SIZE).config
        return LanguageModel(replace(config, vocab_size=vocab_size)).to(self.device)


def _machine(device: torch.device) -> str:
    """The device that measures, in words; where it is no CPU, with its host."""
    if device.type == "cpu":
        return machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, host {machine()}"
