"""Models: a config, parameters, and how they lie in a folder."""

from adder.models.classifier import SequenceClassifier as SequenceClassifier
from adder.models.classifier import SequenceClassifierOutput as SequenceClassifierOutput
from adder.models.classifier_config import SequenceClassifierConfig as SequenceClassifierConfig
from adder.models.config import LanguageModelConfig as LanguageModelConfig
from adder.models.export import export_onnx as export_onnx
from adder.models.export import export_program as export_program
from adder.models.language_model import LanguageModel as LanguageModel
from adder.models.language_model import LanguageModelOutput as LanguageModelOutput
from adder.models.quantized import quantize_model as quantize_model
