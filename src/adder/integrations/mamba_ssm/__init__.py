"""mamba_ssm's and causal_conv1d's functions and modules on our operators, on any device: one changed line.

    from adder.integrations.mamba_ssm import Mamba, Mamba2, selective_scan_fn, causal_conv1d_fn

Signatures, argument names, layouts (batch, dim, length), what is returned and state dicts are the originals' (mamba_ssm
2.3, causal_conv1d 1.6); neither needs to be installed. What cannot be honoured raises an error that names it.
"""

from adder.integrations.functions import causal_conv1d_fn as causal_conv1d_fn
from adder.integrations.functions import causal_conv1d_update as causal_conv1d_update
from adder.integrations.functions import mamba_chunk_scan_combined as mamba_chunk_scan_combined
from adder.integrations.functions import selective_scan_fn as selective_scan_fn
from adder.integrations.functions import selective_state_update as selective_state_update
from adder.integrations.mamba_ssm.fused import mamba_inner_fn as mamba_inner_fn
from adder.integrations.mamba_ssm.fused import (
    mamba_split_conv1d_scan_combined as mamba_split_conv1d_scan_combined,
)
from adder.integrations.mamba_ssm.fused import rmsnorm_fn as rmsnorm_fn
from adder.integrations.mamba_ssm.modules import InferenceParams as InferenceParams
from adder.integrations.mamba_ssm.modules import Mamba as Mamba
from adder.integrations.mamba_ssm.modules import Mamba2 as Mamba2
from adder.integrations.mamba_ssm.modules import RMSNormGated as RMSNormGated
