"""A function of your own and its smoothings, as a picture: what Heat, Entropy-SGD and HJ descend on.

python examples/smoothing.py        # writes smoothing.png; needs SciPy and Matplotlib
"""

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from deeprelax import pde


def f(x: np.ndarray) -> np.ndarray:
    """Two wells with ripples."""
    return (x**2 - 1) ** 2 + 0.3 * x + 0.2 * np.cos(20 * x)


grid = pde.Grid.uniform((-1.8, 1.8, 901))
x = grid.mesh[0]
curves = {
    "f": f(x),
    "heat, γ = 0.02": pde.heat(f, grid, gamma=0.02).u,
    "local entropy, γ = 0.1": pde.viscous(f, grid, gamma=0.1).u,
    "Hopf-Lax, γ = 0.1": pde.non_viscous(f, grid, gamma=0.1).u,
}
for name, u in curves.items():
    print(f"{name}: lowest at x = {x[np.argmin(u)]:.3f}")
    plt.plot(x, u, label=name, linewidth=0.8 if name == "f" else 1.8)
plt.legend()
plt.xlabel("x")
plt.savefig("smoothing.png", dpi=120)
