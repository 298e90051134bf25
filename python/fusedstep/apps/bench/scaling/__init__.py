"""What the optimizer's part of a step costs on many machines: its model, its constants, and what follows from them.

`traffic` counts bytes, `collectives` the time of an exchange, `machine` the hardware; `simulate` puts a step together
of them, `forecast` says what breaks first. `measure` and `worker` find the constants of this machine and take the same
steps in real processes.
"""
