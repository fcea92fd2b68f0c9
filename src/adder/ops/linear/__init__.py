"""The dense layer's product."""

from adder.ops.linear.interface import linear as linear
