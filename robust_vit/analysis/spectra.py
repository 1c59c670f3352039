"""Where in the spectrum a perturbation lies: its Fourier amplitude, and the share of energy below a radius.

Frequencies are in cycles a pixel: 0 in the middle of a spectrum, 0.5 at the end of an axis.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit.errors import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADIUS = 0.25  # of the figure that is stated: half of the highest frequency along an axis


def amplitude(delta: Any) -> np.ndarray:
    """|F| of images: root of the mean over channels of |fftshift(fft2)|^2; of one channel, |fftshift(fft2)|.

    Args:
      delta: [N,H,W,C] perturbations or images.

    Returns:
      [N,H,W] float64, frequency 0 at [H // 2, W // 2].
    """
    delta = np.asarray(delta, np.float64)
    check("delta.shape", delta.shape, delta.ndim == 4, "[N,H,W,C]")
    power = np.abs(np.fft.fft2(delta, axes=(1, 2))) ** 2
    return np.sqrt(np.fft.fftshift(power.mean(-1), axes=(1, 2)))


def radii(height: int, width: int) -> np.ndarray:
    """[H,W]: the distance of each frequency from 0, in cycles a pixel, as `amplitude` arranges them."""
    y, x = (np.fft.fftshift(np.fft.fftfreq(side)) for side in (height, width))
    return np.hypot(y[:, None], x[None, :])


def energy_below(delta: Any, radius: Any = RADIUS) -> np.ndarray:
    """The share of energy at frequencies up to a radius.

    Args:
      delta: [N,H,W,C].
      radius: in cycles a pixel, a number or [R]; above 0.7071 everything is below.

    Returns:
      [N] or [N,R] in [0,1]; 1 for a perturbation that is 0.
    """
    power = amplitude(delta) ** 2
    reached = radii(*power.shape[1:]) <= np.asarray(radius)[..., None, None] + 1e-12  # [(R,)H,W]
    inside = np.einsum("nhw,...hw->n...", power, reached)
    total = power.sum((1, 2)).reshape(-1, *(1,) * (inside.ndim - 1))
    return np.where(total > 0, inside / np.where(total > 0, total, 1), 1.0)


def plot_spectra(deltas: Mapping[str, Any], radius: float = RADIUS, title: str = "") -> "Figure":
    """Draws the log amplitude of each set of perturbations, and the share of energy below every radius.

    Args:
      deltas: {name: [N,H,W,C]}.
      radius: marked in the curves.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl
    from matplotlib.ticker import PercentFormatter

    from robust_vit.analysis import comparison, estimates, plots

    maps = {name: np.sqrt((amplitude(delta) ** 2).mean(0)) for name, delta in deltas.items()}
    logs = {name: np.log10(np.maximum(one, 1e-12)) for name, one in maps.items()}
    high = max(one.max() for one in logs.values())
    low = max(min(one.min() for one in logs.values()), high - 3)  # three decades at most
    with mpl.rc_context(plots.STYLE):
        figure, panels = plots._figure(
            2.6 * len(maps) + 4.4, 3.4, 1, len(maps) + 1, width_ratios=[*[1] * len(maps), 1.6]
        )
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axes, (name, log) in zip(panels, logs.items()):
            plots._bare(axes)
            axes.grid(False)
            shown = axes.imshow(log, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(name, fontsize=9.5)
        bar = figure.colorbar(shown, ax=list(panels[:-1]), fraction=0.05, pad=0.02, aspect=18)
        bar.set_label("log10 amplitude", fontsize=8.5)
        bar.outline.set_visible(False)
        at = np.linspace(0, 0.5**0.5, 60)
        for place, (name, delta) in enumerate(deltas.items()):
            below = energy_below(delta, at)
            middle = [estimates.mean(column) for column in below.T]
            colour = comparison.COLOURS[place % len(comparison.COLOURS)]
            panels[-1].plot(at, [one.value for one in middle], color=colour, label=name)
            panels[-1].fill_between(at, *np.array([one.interval for one in middle]).T, color=colour, alpha=0.15, lw=0)
        panels[-1].axvline(radius, color=plots.FAINT, linewidth=1, linestyle=(0, (3, 3)))
        panels[-1].set(xlim=(0, at[-1]), ylim=(0, 1.02), xlabel="radius, cycles a pixel")
        panels[-1].set_title("energy below the radius", fontsize=9.5)
        panels[-1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower right", ncols=len(deltas))
    return figure


def measured(deltas: Mapping[str, Any], radius: float = RADIUS) -> dict[str, Any]:
    """The figure that is stated: {name: share of energy below the radius with its interval}."""
    from robust_vit.analysis import estimates

    return {name: estimates.mean(energy_below(delta, radius)).as_json() for name, delta in deltas.items()}


def differences(deltas: Mapping[str, Any], radius: float = RADIUS) -> dict[str, Any]:
    """The share of the first set minus that of each other, on the same images."""
    from robust_vit.analysis import estimates

    first, *others = deltas
    return {
        f"{first} - {other}": estimates.difference(
            energy_below(deltas[other], radius), energy_below(deltas[first], radius)
        ).as_json()
        for other in others
    }
