"""Data as a model reads it: texts and their windows, labelled sequences and their batches."""

from adder.data.labelled import Labelled as Labelled
from adder.data.labelled import LabelledOptions as LabelledOptions
from adder.data.labelled import labelled_form as labelled_form
from adder.data.labelled import read_labelled as read_labelled
from adder.data.sequences import Batches as Batches
from adder.data.sequences import LabelledBatch as LabelledBatch
from adder.data.sequences import Sequences as Sequences
from adder.data.sequences import held_out as held_out
from adder.data.text import Text as Text
from adder.data.text import read_source as read_source
from adder.data.text import split_by_position as split_by_position
from adder.data.vocabulary import Bytes as Bytes
from adder.data.vocabulary import Characters as Characters
from adder.data.vocabulary import Decoder as Decoder
from adder.data.vocabulary import Ids as Ids
from adder.data.vocabulary import Vocabulary as Vocabulary
from adder.data.vocabulary import make_vocabulary as make_vocabulary
from adder.data.windows import CarriedWindows as CarriedWindows
from adder.data.windows import RandomWindows as RandomWindows
from adder.data.windows import Window as Window
from adder.data.windows import Windows as Windows
