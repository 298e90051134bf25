"""The curvature of a loss: what kind of point training is stuck at, and the way out.

All functions here need one function, `grad(params) -> grads`, and its calls are their cost: a Hessian-vector product
takes two or three gradients, the ends of a spectrum sixty products, for a network of any size. The whole Hessian is
computed for small problems only.

`grad` gets the parameters as its argument, always in new arrays: yours are never written. If a network holds its
weights elsewhere, `grad` copies them there. They have the structure of `params`: an array, a list, a dict, dicts and
lists within a dict; pairs of a name and an array come as a dict, the arrays of groups as one flat list.
"""

from fusedstep.curvature.critical import CriticalPoint, classify
from fusedstep.curvature.eigenpairs import Spectrum, spectrum
from fusedstep.curvature.lr_range import LRRangeTest, lr_range_test
from fusedstep.curvature.newton import NewtonStep, newton_step
from fusedstep.curvature.products import GradientError, hvp
from fusedstep.curvature.quadrature import SpectralDensity, Trace, spectral_density, trace
from fusedstep.curvature.saddle import Escape, NoNegativeCurvatureError, escape
from fusedstep.curvature.smoothness import Shift, Smoothness, measure_shift, measure_smoothness
from fusedstep.curvature.torch_models import from_torch, loss_from_torch
from fusedstep.curvature.whole_hessian import Hessian, hessian

__all__ = [
    "CriticalPoint",
    "Escape",
    "GradientError",
    "Hessian",
    "LRRangeTest",
    "NewtonStep",
    "NoNegativeCurvatureError",
    "Shift",
    "Smoothness",
    "SpectralDensity",
    "Spectrum",
    "Trace",
    "classify",
    "escape",
    "from_torch",
    "hessian",
    "hvp",
    "loss_from_torch",
    "lr_range_test",
    "measure_shift",
    "measure_smoothness",
    "newton_step",
    "spectral_density",
    "spectrum",
    "trace",
]
