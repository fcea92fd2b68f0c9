"""What a model remembers, and what it takes in: numbers for each layer, and where an output came from."""

from adder.explanation.explain import Explanation, LayerMemory, explain
from adder.explanation.held import Recall
from adder.explanation.linear import kernel, recall
from adder.explanation.row import Row

__all__ = ["Explanation", "LayerMemory", "Recall", "Row", "explain", "kernel", "recall"]
