"""Training models on texts and on labelled sequences: runs, their checkpoints, and how good they are.

The training loop itself is in `adder.training.loop`: it needs the extra "train", reading a run
does not.
"""

from adder.training.config import ClassificationConfig as ClassificationConfig
from adder.training.config import TrainingConfig as TrainingConfig
from adder.training.evaluation import Evaluation as Evaluation
from adder.training.evaluation import evaluate_text as evaluate_text
from adder.training.run_folder import Run as Run
from adder.training.run_folder import RunConfig as RunConfig
from adder.training.run_folder import open_run as open_run
