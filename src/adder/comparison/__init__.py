"""What `adder compare` measures: kinds of blocks of one size against each other, on this machine."""
