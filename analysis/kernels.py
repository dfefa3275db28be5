"""The covariance of `analysis.sensitivity`'s Gaussian process. The first input column is the number of the trial."""

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    Kernel,
    Matern,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

RESTARTS = 2


class ParameterMatern(Matern):
    """A Matern kernel over all columns but the first."""

    def __call__(self, X, Y=None, eval_gradient=False):  # noqa: N803, scikit-learn's names
        return super().__call__(X[:, 1:], None if Y is None else Y[:, 1:], eval_gradient)


class SameTrial(StationaryKernelMixin, NormalizedKernelMixin, Kernel):
    """1 between reports of one trial, else 0: what they share, such as their seed."""

    def __init__(self):  # scikit-learn wants one that names its parameters, none here
        pass

    def __call__(self, X, Y=None, eval_gradient=False):  # noqa: N803, scikit-learn's names
        same = (X[:, :1] == (X if Y is None else Y)[:, 0]).astype(float)
        return (same, np.empty((*same.shape, 0))) if eval_gradient else same


def budget_kernel(inputs: int) -> Kernel:
    """Constant x Matern-5/2 with a length scale per input + effect of the trial + noise, for standardised values."""
    matern = ParameterMatern(length_scale=np.full(inputs, 0.7), length_scale_bounds=(0.1, 30.0), nu=2.5)
    return (ConstantKernel(1.0, (0.02, 50.0)) * matern + ConstantKernel(0.02, (1e-6, 2.0)) * SameTrial()
            + WhiteKernel(0.02, (1e-6, 2.0)))


def regressor(kernel: Kernel, optimise: bool) -> GaussianProcessRegressor:
    return GaussianProcessRegressor(kernel, alpha=1e-9, optimizer="fmin_l_bfgs_b" if optimise else None,
                                    n_restarts_optimizer=RESTARTS if optimise else 0, random_state=0)
