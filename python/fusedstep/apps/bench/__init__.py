"""Benchmarks against peers: the list (`subjects`), the timing (`harness`) and the process (`process`)."""
