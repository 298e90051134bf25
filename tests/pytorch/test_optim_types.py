"""What type checkers see of the classes that are made at run time."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fusedstep
from fusedstep.torch import optim

STUB = Path(fusedstep.__file__).parent / "torch/optim/__init__.pyi"

GOOD = """
import torch
from fusedstep.torch import optim

model = torch.nn.Linear(2, 1)
opt = optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99), fused=True)
optim.Muon(model.named_parameters(), use_muon=lambda name, p: p.ndim == 2, adamw_lr=0.1)
optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
optim.REGISTRY["adamw"](model.parameters())
opt.report
"""
BAD = """
from fusedstep.torch import optim

optim.AdamW([], learning_rate=1e-3)
optim.AdamW([], max_grad_norm="1")
optim.SGD([], betas=(0.9, 0.99))
optim.Lion([], cautious=None)
optim.Muon([], adamw_betas=0.9)
optim.AdamX([])
"""
MESSAGES = [
    'Unexpected keyword argument "learning_rate" for "AdamW"',
    'Argument "max_grad_norm" to "AdamW" has incompatible type "str"',
    'Unexpected keyword argument "betas" for "SGD"',
    'Argument "cautious" to "Lion" has incompatible type "None"',
    'Argument "adamw_betas" to "Muon" has incompatible type "float"',
    'Module has no attribute "AdamX"',
]


def test_mypy(tmp_path):
    """Of torch and the rest of the library it reads nothing here, which would take a minute."""
    pytest.importorskip("mypy")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    options = ["--strict", "--follow-imports=skip", "--no-error-summary", "--config-file=", "--disable-error-code=misc"]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={tmp_path / 'cache'}"]
    files = [str(tmp_path / "good.py"), str(tmp_path / "bad.py"), str(STUB)]
    found = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
    lines = [line for line in found.splitlines() if ": error:" in line]
    assert [line for line in lines if not line.startswith("bad.py:")] == []
    assert [int(line.split(":")[1]) for line in lines] == list(range(4, 10)), found
    for line, message in zip(lines, MESSAGES, strict=True):
        assert message in line


@pytest.mark.parametrize("name", optim.__all__)
def test_public_names(name):
    lines = STUB.read_text(encoding="utf-8").splitlines()
    assert (
        any(line.startswith(f"class {name}(") or line.endswith(f" as {name}") for line in lines) or name == "REGISTRY"
    )


@pytest.mark.parametrize("rule", sorted(optim.REGISTRY))
def test_defaults(rule):
    """The stub has the arguments of the class, in its order; the test of what is generated has their defaults."""
    kind = optim.REGISTRY[rule]
    body = STUB.read_text(encoding="utf-8").partition(f"class {kind.__name__}(FusedOptimizer):\n")[2]
    written = body.partition(") -> None")[0].split("(\n", 1)[1].splitlines()
    names = [line.split(":")[0].strip() for line in written if ":" in line]
    assert names == list(inspect.signature(kind).parameters)
