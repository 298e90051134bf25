"""The specification: every kernel in NumPy, written to be read.

It is the instruction set `"numpy"`: every result of the library has the bits of this package. It knows arrays and
numbers alone: it imports only NumPy and `fusedstep._common`.
"""
