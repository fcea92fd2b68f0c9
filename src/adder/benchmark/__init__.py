"""What `adder bench` measures: the machine's limits, the operators, whole models, and peers beside them.

Every model is measured in a process of its own (`worker.py`, `peers/serve.py`), and all of them take turns.
"""
