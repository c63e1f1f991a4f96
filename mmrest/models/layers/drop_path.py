from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth: sets a residual branch to zero for some samples in training.

    Args:
        drop_prob (float): Probability of zero, in [0, 1). The other samples are divided by
            ``1 - drop_prob``.
    """

    def __init__(self, drop_prob: float = 0.):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep_prob = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0], ) + (1, ) * (x.ndim - 1))
        return x * mask.bernoulli_(keep_prob).div_(keep_prob)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
