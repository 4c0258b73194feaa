"""The optimizers of "Deep Relaxation: partial differential equations for optimizing deep neural networks"
(Chaudhari, Oberman, Osher, Soatto, Carlier; ICML 2017) as drop-in, fused ``torch.optim`` optimizers."""

import importlib.util

if importlib.util.find_spec("deeprelax.kernels") is None:  # the folder kernels/ is installed as deeprelax.kernels
    raise ImportError(
        "deeprelax was imported from its source folder, which is not installed in place: start Python in another "
        "folder, or run `pip install -e .` here"
    )

from deeprelax import kernels
from deeprelax.batchnorm import recalibrate_batchnorm
from deeprelax.optim.elastic_sgd import ElasticSGD
from deeprelax.optim.entropy_adamw import EntropyAdamW
from deeprelax.optim.entropy_sgd import EntropySGD
from deeprelax.optim.heat import Heat
from deeprelax.optim.hj import HJ
from deeprelax.optim.outer_loop import OuterLoop
from deeprelax.optim.parle import Parle

__version__ = "0.1.0"
__all__ = [
    "HJ",
    "ElasticSGD",
    "EntropyAdamW",
    "EntropySGD",
    "Heat",
    "OuterLoop",
    "Parle",
    "kernels",
    "recalibrate_batchnorm",
]
