"""A model reading and writing one text, or classifying one sequence as it comes."""

from adder.generation.live import LiveClassifier as LiveClassifier
from adder.generation.stream import Stream as Stream
