"""The Hessian's spectrum of the digits network during training."""

from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.examples import digits
from fusedstep.gallery import _digits, _style
from fusedstep.gallery._figure import Data

TITLE = "The spectrum of a network's Hessian"

_SIZES = [64, 32, 10]


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Both ends after chosen epochs, and the density at three of them; of differences of the gradient in float64."""
    ends_at = [0, 1, 5] if quick else [0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80]
    density_at = [0, 5] if quick else [0, 5, 80]
    train_x, train_y, _, _ = _digits.load(seed)
    model = digits.MLP(_SIZES, False, seed)
    optimizer = fs.SGD(model.params, lr=0.1, momentum=0.9)
    data: Data = {"epochs": ends_at, "densities": {}, "bottom": [], "top": [], "losses": [], "claims": {}}

    def look(epoch: int) -> None:
        grad, loss, params = _digits.in_doubles(model, train_x, train_y)
        if epoch in ends_at:
            found = fs.curvature.spectrum(grad, params, 1, max_products=20 if quick else 40, seed=seed)
            data["bottom"].append(float(found.eigenvalues[0]))
            data["top"].append(float(found.eigenvalues[-1]))
            data["losses"].append(loss(params))
        if epoch in density_at:
            data["densities"][epoch] = fs.curvature.spectral_density(
                grad, params, probes=1 if quick else 4, steps=20 if quick else 60, seed=seed
            )

    look(0)
    course = _digits.epochs(model, optimizer, train_x, train_y, batch_size=64, count=ends_at[-1], seed=seed)
    for epoch, _ in enumerate(course, start=1):
        look(epoch)
    data["claims"] = {
        "parameters": sum(p.size for p in model.params.values()),
        "epochs": ends_at,
        "smallest_eigenvalue": data["bottom"],
        "largest_eigenvalue": data["top"],
        "training_loss": data["losses"],
        # Of the Hessian's eigenvalues, in parts of the largest.
        "part_within_a_hundredth": {
            epoch: _near_zero(density.nodes, density.weights) for epoch, density in data["densities"].items()
        },
    }
    return data
