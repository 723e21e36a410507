r"""Whole layers, of which only the part with the smallest singular values is trained, as a product of three factors.

Letters: M and N the sizes of a layer's matrix in its own layout, K protected singular directions, R all others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from see_lightning.adapters.whole_layers import WholeLayers


def without(rows_AN: Tensor, directions_KN: Tensor) -> Tensor:
    """Rows without their components in some directions, (A, N).

    Args:
        rows_AN: any number of rows.
        directions_KN: orthonormal rows.

    >>> without(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([[0., 4.]])
    """
    return rows_AN - (rows_AN @ directions_KN.T) @ directions_KN


@dataclass(frozen=True)
class Protected:
    r"""The part of a layer's matrix that stays: $U_h \Sigma_h V_h^\top$.

    Args:
        left_KM: $U_h^\top$, orthonormal rows.
        right_KN: $V_h^\top$, orthonormal rows.
        matrix_MN: the product.
    """

    left_KM: Tensor
    right_KN: Tensor
    matrix_MN: Tensor


class FactoredLayers(nn.Module):
    r"""The layers' matrices as $W = U_h \Sigma_h V_h^\top + U_l \Sigma_l V_l^\top$.

    $U_l$, $\Sigma_l$ and $V_l$ are trained; the other factors and the biases stay. They begin as the singular value
    decomposition of the copies in ``whole``, computed in fp64 and kept in fp32.

    Args:
        whole: copies of the layers; they stay as they are.
        protected: K of each layer, by its name: at least 0, and less than the smaller of its sizes.
    """

    adapters: tuple[str, ...] = ()

    def __init__(self, whole: WholeLayers, protected: Mapping[str, int]) -> None:
        super().__init__()
        self.whole = whole
        self.protected: dict[str, Protected] = {}
        #: U_l, (M, R), the diagonal of Sigma_l, (R,), and the transpose of V_l, (R, N), of each layer, by its name.
        self.factors: dict[str, tuple[nn.Parameter, nn.Parameter, nn.Parameter]] = {}
        self._trained = nn.ParameterList()
        for layer, matrix_MN in whole.matrices().items():
            u_MD, s_D, v_DN = torch.linalg.svd(matrix_MN.detach().double(), full_matrices=False)
            k = protected[layer]
            parts = (part.float().contiguous() for part in (u_MD[:, k:], s_D[k:], v_DN[k:]))
            low_MR, low_R, low_RN = (nn.Parameter(part) for part in parts)
            self.factors[layer] = low_MR, low_R, low_RN
            self._trained.extend(self.factors[layer])
            rest_MN = matrix_MN.detach() - (low_MR * low_R).detach() @ low_RN.detach()
            self.protected[layer] = Protected(u_MD[:, :k].T.float(), v_DN[:k].float(), rest_MN)

    def matrix(self, layer: str) -> Tensor:
        """A layer's matrix as the sum of both parts, (M, N), with gradients for the factors."""
        low_MR, low_R, low_RN = self.factors[layer]
        return self.protected[layer].matrix_MN + (low_MR * low_R) @ low_RN

    def project_gradients(self) -> None:
        """Remove the components of the gradients of U_l and V_l in protected directions."""
        for layer, (low_MR, _, low_RN) in self.factors.items():
            kept = self.protected[layer]
            if low_MR.grad is not None:
                low_MR.grad = without(low_MR.grad.T, kept.left_KM).T.contiguous()
            if low_RN.grad is not None:
                low_RN.grad = without(low_RN.grad, kept.right_KN)

    @torch.no_grad()
    def project(self) -> None:
        """Remove the components of U_l and V_l in protected directions."""
        for layer, (low_MR, _, low_RN) in self.factors.items():
            kept = self.protected[layer]
            low_MR.copy_(without(low_MR.T, kept.left_KM).T)
            low_RN.copy_(without(low_RN, kept.right_KN))

    def learn(self, layer: str, x: Tensor, y: Tensor) -> Tensor:
        """The output, (..., O), of the factored layer for its input, (..., I)."""
        return y + self.add(layer, x)

    def add(self, layer: str, x: Tensor) -> Tensor:
        """The update of a layer's output, (..., O), in the dtype of its input ``x``, (..., I); with gradients."""
        return linear(x, *(change.to(x.dtype) for change in self.whole.changes(layer, self.matrix(layer))))

    def weights(self) -> Iterator[Tensor]:
        """The factors of every layer, and the part that stays."""
        yield from self._trained
        yield from (kept.matrix_MN for kept in self.protected.values())

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """Refuse to give A and B, which these layers do not have.

        Raises:
            ConfigError: always.
        """
        return self.whole.pair(layer)
