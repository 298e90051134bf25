"""The suite with everything around us held to other kernels, one setting after the other: `python tests/matrix.py`.

Torch, BLAS, NumPy and the C library choose their kernels by processor, and so the last bits of their sums. Each setting
stands for a processor that is not at hand: the first two hold everything together, the others one library. Arguments go
to pytest: `python tests/matrix.py -n 2 tests/optimizers/test_lbfgs.py`; `--settings NAME ...` leaves the others out.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time

# What the libraries say that they run on, after they have read their settings.
FACTS = """
import json
import fusedstep, numpy, threadpoolctl, torch
from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatch, __cpu_features__ as there

blas = {pool["architecture"] for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"}
dispatched = [name for name in dispatch if there[name]]
ran = {
    "torch": torch.backends.cpu.get_cpu_capability(),
    "OpenBLAS": "/".join(sorted(blas)),
    "NumPy": dispatched[-1] if dispatched else "baseline",
    "fusedstep": f"{fusedstep.runtime.isa()} on {fusedstep.runtime.num_threads()}",
}
print(json.dumps({"isas": fusedstep.runtime.available_isas(), "numpy dispatch": dispatched, "ran": ran}))
"""
COUNTS = ("passed", "failed", "error", "skipped")


def facts(env):
    process = subprocess.run([sys.executable, "-c", FACTS], env=os.environ | env, capture_output=True, check=True)
    return json.loads(process.stdout)


def settings():
    """Names and environment variables; only what this machine can be held to."""
    here = facts({})
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FUSEDSTEP_NUM_THREADS")
    narrow_numpy = {"NPY_DISABLE_CPU_FEATURES": " ".join(here["numpy dispatch"])}
    no_fma = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX2_Usable,-FMA,-FMA_Usable"}
    together = {
        "all baseline": narrow_numpy
        | no_fma
        | {
            "ATEN_CPU_CAPABILITY": "default",
            "OPENBLAS_CORETYPE": "Prescott",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "FUSEDSTEP_ISA": here["isas"][1],
        }
    }
    if "avx2" in here["isas"]:
        together["all AVX2"] = {
            "ATEN_CPU_CAPABILITY": "avx2",
            "OPENBLAS_CORETYPE": "Zen",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "FUSEDSTEP_ISA": "avx2",
            "NPY_DISABLE_CPU_FEATURES": " ".join(n for n in here["numpy dispatch"] if n not in ("X86_V3", "AVX2")),
        }
    return together | {
        "as it is": {},
        "torch default": {"ATEN_CPU_CAPABILITY": "default"},
        "torch avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
        "OpenBLAS Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
        "OpenBLAS Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
        "MKL and oneDNN AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        "NumPy baseline": narrow_numpy,
        "libm without FMA": no_fma,
        "one thread": dict.fromkeys(threads, "1"),
        "two threads": dict.fromkeys(threads, "2"),
        **{f"fusedstep {isa}": {"FUSEDSTEP_ISA": isa} for isa in here["isas"][1:-1]},
    }


def main(arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--settings", nargs="+", metavar="NAME")
    chosen, arguments = parser.parse_known_args(arguments)
    found = settings()
    if unknown := [name for name in chosen.settings or () if name not in found]:
        parser.error(f"no such settings: {', '.join(unknown)}; there are: {', '.join(found)}")
    rows, failed = [], []
    for name in chosen.settings or found:
        env = found[name]
        print(f"== {name}: {' '.join(f'{key}={value!r}' for key, value in env.items())}", flush=True)
        start = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            env=os.environ | env,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds = time.monotonic() - start
        last = process.stdout.strip().rsplit("\n", 1)[-1]
        counts = {kind: int((re.search(rf"(\d+) {kind}", last) or [0, 0])[1]) for kind in COUNTS}
        if process.returncode:
            failed.append(name)
            print(process.stdout, flush=True)
        ran = ", ".join(f"{library} {kernels}" for library, kernels in facts(env)["ran"].items())
        print(f"{last}, {seconds:.0f} s on {ran}", flush=True)
        rows.append((name, *(str(counts[kind]) for kind in COUNTS), f"{seconds:.0f}", ran))
    head = ("setting", *COUNTS, "seconds", "what ran")
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return f"failed: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
