"""adder under other libraries' names. Each module needs its library only when it is used, and says which version."""
