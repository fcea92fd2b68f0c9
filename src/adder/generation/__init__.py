"""A model reading and writing one text."""

from adder.generation.stream import Stream as Stream
