"""The specification: every kernel in NumPy, written to be read.

It is the instruction set `"numpy"`: whatever the library computes, it computes the same bits as this package. It knows
arrays and numbers alone: beside NumPy it imports nothing of the library but `fusedstep._common`.
"""
