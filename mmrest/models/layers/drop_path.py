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
        # A sample is a channel to it. A graph of torch.fx asks it for the mode at each call.
        self.dropout = nn.Dropout1d(drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x.flatten(1)).view_as(x)  # (B, N C)
