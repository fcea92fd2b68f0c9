"""Layers: parameters, their initialisation, and one call to an operator. `y, state = layer(u, state)`."""

from adder.layers.attention import Attention as Attention
from adder.layers.mamba import Mamba as Mamba
from adder.layers.mamba2 import Mamba2 as Mamba2
from adder.layers.norm import GatedRMSNorm as GatedRMSNorm
from adder.layers.norm import RMSNorm as RMSNorm
from adder.layers.parameters import parameter_groups as parameter_groups
from adder.layers.quantized import QuantizedEmbedding as QuantizedEmbedding
from adder.layers.quantized import QuantizedLinear as QuantizedLinear
from adder.layers.recurrent import Recurrent as Recurrent
from adder.layers.s4 import S4 as S4
from adder.layers.s4_block import S4Block as S4Block
from adder.layers.s4d import S4D as S4D
from adder.layers.selective import SelectiveSSM as SelectiveSSM
from adder.layers.state import State as State
from adder.layers.state import detach_state as detach_state
from adder.layers.state import flatten_state as flatten_state
from adder.layers.state import map_state as map_state
from adder.layers.state import unflatten_state as unflatten_state
