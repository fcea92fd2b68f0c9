"""Read a long text once, save where it ends, and continue it later without reading it again.

    python examples/continue_a_text.py RUN PROMPT STATE

RUN is a folder of `adder train`. The first call reads PROMPT and writes STATE, a few hundred
kilobytes whatever the length of the text; every further call goes on from STATE.
"""

import sys
from pathlib import Path

from adder import Stream
from adder.training import open_run


def main(run: str, prompt: str, state: str, tokens: int = 200) -> str:
    opened = open_run(run)
    model, vocabulary = opened.model(), opened.vocabulary
    if Path(state).exists():
        stream = Stream.load(state, model, vocabulary)
    else:
        stream = Stream(model, vocabulary)
        stream.feed(prompt)
    # A fork costs nothing: here it looks ahead, and the stream stays where it was.
    likeliest = "".join(stream.fork().generate(20, temperature=0))
    written = "".join(stream.generate(tokens, temperature=0.8, top_p=0.95, seed=1))
    stream.save(state)
    return f"[{stream.position} tokens read; likeliest: {likeliest!r}]\n{written}"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    print(main(*sys.argv[1:]))
