"""Checkpoints: one safetensors file, written whole or not at all, and read whole or not at all."""

from fusedstep.checkpoint.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "save_checkpoint"]
