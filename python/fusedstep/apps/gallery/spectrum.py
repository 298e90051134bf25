"""The Hessian's spectrum of the digits network during training."""

from typing import Any

import numpy as np

import fusedstep as fs
from fusedstep.apps.examples import digits
from fusedstep.apps.gallery import looks, network
from fusedstep.apps.gallery.drawing import Data

TITLE = "The spectrum of a network's Hessian"

_SIZES = [64, 32, 10]


def compute(seed: int = 0, quick: bool = False) -> Data:
    """Both ends after chosen epochs, and the density at three of them; of differences of the gradient in float64."""
    ends_at = [0, 1, 5] if quick else [0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80]
    density_at = [0, 5] if quick else [0, 5, 80]
    train_x, train_y, _, _ = network.load(seed)
    model = digits.MLP(_SIZES, False, seed)
    optimizer = fs.SGD(model.params, lr=0.1, momentum=0.9)
    data: Data = {"epochs": ends_at, "densities": {}, "bottom": [], "top": [], "losses": [], "claims": {}}

    def look(epoch: int) -> None:
        grad, loss, params = network.in_doubles(model, train_x, train_y)
        if epoch in ends_at:
            found = fs.curvature.spectrum(grad, params, 1, max_products=20 if quick else 40, seed=seed)
            data["bottom"].append(float(found.eigenvalues[0]))
            data["top"].append(float(found.eigenvalues[-1]))
            data["losses"].append(loss(params))
        if epoch in density_at:
            data["densities"][epoch] = fs.curvature.spectral_density(
                grad, params, probes=1 if quick else 4, steps=20 if quick else 60, width=0.02, seed=seed
            )

    look(0)
    course = network.epochs(model, optimizer, train_x, train_y, batch_size=64, count=ends_at[-1], seed=seed)
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


def _near_zero(nodes: Any, weights: Any) -> float:
    """The part of the eigenvalues that are at most a hundredth of the largest, as the quadrature tells."""
    sizes = np.abs(np.nan_to_num(nodes))
    return float((weights * (sizes <= 0.01 * sizes.max())).sum(axis=1).mean())


def caption(data: Data) -> str:
    """What to see."""
    claims = data["claims"]
    last = max(claims["part_within_a_hundredth"])
    peak = int(np.argmax(data["top"]))
    return (
        f"Left: the density of the {claims['parameters']:,} eigenvalues of the digits network's Hessian, on a "
        f"logarithmic axis. After {last} epochs {claims['part_within_a_hundredth'][last]:.0%} of them are "
        "within a hundredth of the largest around 0, and a few are far from the rest. Right: the largest and the "
        f"smallest eigenvalue over the run. The largest is {data['top'][0]:.2g} at the start, {data['top'][peak]:.2g} "
        f"after epoch {data['epochs'][peak]} and {data['top'][-1]:.2g} at the end. The smallest stays below 0 "
        f"({data['bottom'][-1]:.2g} at the end), so the loss always has a direction of negative curvature."
    )


def draw(data: Data) -> Any:
    """Densities, and the ends of the spectrum over the epochs."""
    count = len(data["densities"])
    figure, axes = looks.new(3.8, count, 2, sharex="col")
    for ax in axes[1::2]:
        ax.remove()
    right = figure.add_subplot(axes[0].get_gridspec()[:, 1])
    for k, (epoch, density) in enumerate(data["densities"].items()):
        ax = axes[2 * k]
        # Below a single eigenvalue's peak are the tails of the curves.
        floor = 0.02 / (density.size * density.width)
        ax.fill_between(density.grid, density.density, floor / 10, color=looks.SKY, alpha=0.5, lw=0)
        ax.plot(density.grid, density.density, color=looks.BLUE, lw=1)
        ax.axvline(0, color="0.6", lw=0.8, ls=":", zorder=0)
        ax.set(yscale="log", ylim=(floor, 3 * density.density.max()), ylabel="density")
        ax.set_title("At the start" if epoch == 0 else f"After {epoch} epochs")
    axes[2 * count - 2].set_xlabel("eigenvalue of the Hessian")

    epochs = np.array(data["epochs"])
    right.plot(epochs, data["top"], marker="o", ms=4, label="largest", **looks.look(0))
    right.plot(epochs, np.abs(data["bottom"]), marker="s", ms=4, label="− smallest", **looks.look(1))
    right.plot(epochs, data["losses"], marker="^", ms=4, label="training loss", **looks.look(2))
    right.set(title="Ends, and the loss", xlabel="epoch", ylabel="eigenvalue; nats", yscale="log")
    right.set_xscale("symlog", linthresh=1)
    shown = [epoch for epoch in (0, 1, 2, 5, 12, 30, 80) if epoch in data["epochs"]]
    right.set_xticks(shown, [str(epoch) for epoch in shown])
    right.tick_params(axis="x", which="minor", bottom=False)
    right.set_xlim(-0.15, 1.15 * epochs[-1])
    right.legend(loc="lower left")
    return figure
