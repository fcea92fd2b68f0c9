"""State space models as mathematics: plain tensors in float64, one function per idea, no nn.Module."""
