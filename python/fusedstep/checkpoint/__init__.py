"""Checkpoints: one safetensors file, written whole or not at all, and read whole or not at all.

Any reader of safetensors finds the arrays in it, in C order: `param/<name>`, `state/<position>/<name>`, and so on.
Everything else is JSON in the file's metadata, under "fusedstep": the format and the library's version; `tensors`, the
schema, with dtype, shape and CRC-32 of every array; `params`, their names in order; the optimizer's state dict; the
random state; the caller's metadata. Beside it stands the CRC-32 of that text.

The schedules of this library among the hyper-parameters are a table in the optimizer's part, `schedule_table`: rows of
a name, arguments, the rows of the schedules within, and a state; `schedule_rows` says, group by group, which
hyper-parameter is which row. `views` says which parameters lie in the memory of which other one, and where; `layers`
says which are layers, and what their arrays are. A file has the oldest format that can hold it: 2; 3 with schedules; 4
with views or layers. So an older version reads all files that it can, and calls the others newer.
"""

from fusedstep.checkpoint.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"]
