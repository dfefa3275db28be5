"""The covariance of the Gaussian process in `budget_model`. The first input column is the number of the trial."""

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
    """1 between two reports of one trial, else 0: the effect that they share, such as their seed's luck."""

    def __init__(self):  # scikit-learn reads the parameters off its signature: none
        pass

    def __call__(self, X, Y=None, eval_gradient=False):  # noqa: N803, scikit-learn's names
        same = (X[:, :1] == (X if Y is None else Y)[:, 0]).astype(float)
        return (same, np.empty((*same.shape, 0))) if eval_gradient else same


def budget_kernel(inputs: int) -> Kernel:
    """Constant x Matern-5/2 with a length scale per input + effect of the trial + noise, for standardised values.

    inputs: the number of columns after the first.
    """
    matern = ParameterMatern(length_scale=np.full(inputs, 0.7), length_scale_bounds=(0.1, 30.0), nu=2.5)
    return (ConstantKernel(1.0, (0.02, 50.0)) * matern + ConstantKernel(0.02, (1e-6, 2.0)) * SameTrial()
            + WhiteKernel(0.02, (1e-6, 2.0)))


def regressor(kernel: Kernel, optimise: bool) -> GaussianProcessRegressor:
    """A process with this kernel; `optimise` says whether `fit` maximises the marginal likelihood over it."""
    return GaussianProcessRegressor(kernel, alpha=1e-9, optimizer="fmin_l_bfgs_b" if optimise else None,
                                    n_restarts_optimizer=RESTARTS if optimise else 0, random_state=0)
