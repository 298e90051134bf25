"""Files of checkpoints, written, changed and read again."""

import json
import zlib

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fusedstep as fs


def rewritten(path, change):
    """The file with `change` made to its header and tensors, and the header's checksum right again."""
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["fusedstep"])
    tensors = load_file(path)
    change(header, tensors)
    text = json.dumps(header)
    checksum = f"{zlib.crc32(text.encode()):08x}"
    save_file(tensors, path, metadata={"fusedstep": text, "fusedstep.crc32": checksum})


def through(path, params=(), optimizer=None, **rest):
    fs.save_checkpoint(path, params, optimizer, **rest)
    return fs.load_checkpoint(path)
