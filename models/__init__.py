"""Floor 0, what is being compared: layer mixes, their operators, counts and matching.

Importing this package loads no torch: planning counts parameters and FLOPs without it.
"""
