"""Train a tiny language model on a string, in plain PyTorch, and let it write.

python examples/train_on_a_string.py
"""

import torch

from adder import LanguageModel, LanguageModelConfig, Stream
from adder.data.vocabulary import Characters

TEXT = "she sells sea shells by the sea shore. " * 4


def main(steps: int = 60) -> str:
    torch.manual_seed(0)
    vocabulary = Characters(TEXT)
    ids = torch.as_tensor(vocabulary.encode(TEXT))[None]
    model = LanguageModel(LanguageModelConfig(vocab_size=vocabulary.size, d_model=32, n_layer=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    stream = Stream(model.eval(), vocabulary)
    stream.feed("she sells ")
    return "she sells " + "".join(stream.generate(29, temperature=0))


if __name__ == "__main__":
    print(main())
