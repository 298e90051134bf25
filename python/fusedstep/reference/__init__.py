"""The specification: every kernel in NumPy, written to be read.

It is the instruction set `"numpy"`: whatever the library computes, it computes the same bits as this package. The rules
themselves stand with the optimizers, as their `coefficients` and `update`.
"""
