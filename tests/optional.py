"""PyTorch, or what skips the test that asks for it where torch is not installed."""

import pytest

try:
    import torch
except ModuleNotFoundError:

    class Missing:
        """Torch, and whatever one asks of it; tables of tests may name its parts."""

        def __getattr__(self, name):
            return Missing()

        def __call__(self, *arguments, **named):
            pytest.skip("needs torch", allow_module_level=True)

    torch = Missing()

__all__ = ["torch"]
