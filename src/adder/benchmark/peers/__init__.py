"""Other libraries' models, measured in a process of their own.

Nothing of adder is imported in this folder, and its files import each other by relative names: another
interpreter can run it (`adder bench cpu --peer-python`), where it is a package of its own.
"""
