"""Logistic regression by Newton's method.

Letters: N samples, F inputs, G = 1 + F weights.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def fit_logistic(x_NF: Tensor, y_N: Tensor, weight_N: Tensor, ridge: float) -> Tensor:
    r"""Weights of a logistic regression, (1 + F,), the constant first: the minimum of the penalised negative log-likelihood.

    $\sum_n v_n \left(\log(1 + e^{-z_n}) + (1 - y_n) z_n\right) + \frac{\lambda}{2} \lVert w \rVert^2$ with $z = b + X w$.

    Args:
        x_NF: inputs of a common scale, in fp64.
        y_N: 1 for a sample to accept, 0 for one to refuse; samples of both kinds.
        weight_N: $v$, the weight of each sample, above 0.
        ridge: $\lambda$, above 0; the constant b is not penalised.
    """
    x_NG = torch.cat([torch.ones_like(x_NF[:, :1]), x_NF], dim=1)
    penalty_G = torch.full((x_NG.shape[1],), ridge, dtype=x_NF.dtype)
    penalty_G[0] = 0

    def loss(weights_G: Tensor) -> Tensor:
        z_N = x_NG @ weights_G
        return (weight_N * (softplus(z_N) - y_N * z_N)).sum() + (penalty_G * weights_G.square()).sum() / 2

    weights_G = torch.zeros(x_NG.shape[1], dtype=x_NF.dtype)
    for _ in range(50):
        p_N = torch.sigmoid(x_NG @ weights_G)
        gradient_G = x_NG.T @ (weight_N * (p_N - y_N)) + penalty_G * weights_G
        hessian_GG = x_NG.T @ (x_NG * (weight_N * p_N * (1 - p_N))[:, None]) + penalty_G.diag()
        step_G, size = torch.linalg.lstsq(hessian_GG, gradient_G[:, None]).solution[:, 0], 1.0
        while size > 1e-6 and loss(weights_G - size * step_G) > loss(weights_G):
            size /= 2
        weights_G = weights_G - size * step_G
        if gradient_G.abs().max() < 1e-9:
            break
    return weights_G
