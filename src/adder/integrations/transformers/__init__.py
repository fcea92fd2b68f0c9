"""Hugging Face's own Mamba-family models on our operators: forward, backward and cached decoding, on CPU and GPU.

    from adder.integrations.transformers import accelerate
    model = AutoModelForCausalLM.from_pretrained(...)
    accelerate(model)           # the model stays what it is: its class, parameters, cache and generate()

Serves mamba, falcon_mamba, jamba, zamba, mamba2, bamba, zamba2, nemotron_h, granitemoehybrid and falcon_h1 of
transformers from 5.15 on. `calls` counts what ran.
"""

from adder.integrations.transformers.patching import FAMILIES as FAMILIES
from adder.integrations.transformers.patching import Calls as Calls
from adder.integrations.transformers.patching import accelerate as accelerate
from adder.integrations.transformers.patching import calls as calls
from adder.integrations.transformers.patching import patch as patch
from adder.integrations.transformers.patching import unpatch as unpatch
