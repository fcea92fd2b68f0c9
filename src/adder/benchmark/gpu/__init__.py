"""What `adder bench gpu` measures: a GPU's ceilings, operators, blocks and models against them, and peers beside them.

Everything runs in this process, one measurement after the other, and each is kept as soon as it is there. The device
and the clock are parameters: the tests run the same code on a CPU.
"""
