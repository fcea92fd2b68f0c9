"""State space models as mathematics: plain tensors in float64, one function per idea, no nn.Module."""

from adder.theory.discretize import discretize as discretize
from adder.theory.dplr import NPLR as NPLR
from adder.theory.dplr import dplr_generating_function as dplr_generating_function
from adder.theory.dplr import nplr as nplr
from adder.theory.hippo import diagonal as diagonal
from adder.theory.hippo import hippo as hippo
from adder.theory.memory import Memory as Memory
from adder.theory.memory import basis as basis
from adder.theory.memory import project as project
from adder.theory.memory import reconstruct as reconstruct
from adder.theory.memory import remember as remember
from adder.theory.memory import weight as weight
from adder.theory.state_space import DiscreteStateSpace as DiscreteStateSpace
from adder.theory.state_space import StateSpace as StateSpace
