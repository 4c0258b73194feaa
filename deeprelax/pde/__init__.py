"""The equations behind the optimizers, solved on grids and by Monte Carlo.

Needs NumPy and SciPy (``pip install 'deeprelax[experiments]'``); ``import deeprelax`` alone does not import it.
"""

from deeprelax.pde.finite_differences import Evolution, hamilton_jacobi, hamilton_jacobi_bellman
from deeprelax.pde.fokker_planck import FokkerPlanck
from deeprelax.pde.grid import Grid
from deeprelax.pde.hopf_lax import Envelope, lower_envelope, non_viscous, proximal_points
from deeprelax.pde.proximal import ProximalEstimate, sampled_proximal
from deeprelax.pde.sde import Estimate, langevin, two_scales
from deeprelax.pde.smoothing import Smoothed, gibbs_average, heat, viscous

__all__ = [
    "Envelope",
    "Estimate",
    "Evolution",
    "FokkerPlanck",
    "Grid",
    "ProximalEstimate",
    "Smoothed",
    "gibbs_average",
    "hamilton_jacobi",
    "hamilton_jacobi_bellman",
    "heat",
    "langevin",
    "lower_envelope",
    "non_viscous",
    "proximal_points",
    "sampled_proximal",
    "two_scales",
    "viscous",
]
