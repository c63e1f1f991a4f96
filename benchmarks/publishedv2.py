"""A port of the published ResTv2, as published.py is one of ResT: an oracle for the tests and
benchmarks, which shares no code with mmrest and has the published parameter names.

It differs from the authors' code in one thing: a feature map has the size that its convolution
gives, and the up-sampled values are cropped to it, so images need not be multiples of 32.

Do not make it faster.
"""
from torch import nn

from benchmarks.published import FFN, NUM_HEADS, SR_RATIOS, Position

ARCHS = {
    name: dict(embed_dims=dims, depths=depths, num_heads=heads, sr_ratios=SR_RATIOS)
    for name, dims, depths, heads in (
        ('tiny', (96, 192, 384, 768), (1, 2, 6, 2), NUM_HEADS),
        ('small', (96, 192, 384, 768), (1, 2, 12, 2), NUM_HEADS),
        ('base', (96, 192, 384, 768), (1, 3, 16, 3), NUM_HEADS),
        ('large', (128, 256, 512, 1024), (2, 3, 16, 2), (2, 4, 8, 16)),
    )
}
EPS = 1e-6


class Embed(nn.Module):
    """Convolutions, position, then LayerNorm over tokens: (B, N, C), H and W."""

    def __init__(self, dim_in, dim, is_stem):
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim, kernel_size=3, stride=2, padding=1)
        if is_stem:
            half = dim // 2
            self.proj = nn.Sequential(
                nn.Conv2d(dim_in, half, kernel_size=3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(half), nn.ReLU(inplace=True),
                nn.Conv2d(half, dim, kernel_size=3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(dim), nn.ReLU(inplace=True), nn.Conv2d(dim, dim, kernel_size=1))
        self.pos = Position(dim)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, x):
        x = self.pos(self.proj(x))
        H, W = x.shape[2:]
        return self.norm(x.flatten(2).transpose(1, 2)), H, W


class AttentionV2(nn.Module):

    def __init__(self, dim, num_heads, sr_ratio):
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio + 1, stride=sr_ratio,
                                padding=sr_ratio // 2, groups=dim)
            self.sr_norm = nn.LayerNorm(dim, EPS)
        self.up = nn.Sequential(
            nn.Conv2d(dim, sr_ratio**2 * dim, kernel_size=3, padding=1, groups=dim),
            nn.PixelShuffle(sr_ratio))
        self.up_norm = nn.LayerNorm(dim, EPS)

    def forward(self, x, H, W):
        B, N, C = x.shape
        heads = self.num_heads
        q = self.q(x).reshape(B, N, heads, C // heads).permute(0, 2, 1, 3)
        h, w = H, W
        if self.sr_ratio > 1:
            image = self.sr(x.permute(0, 2, 1).reshape(B, C, H, W))
            h, w = image.shape[2:]
            x = self.sr_norm(image.reshape(B, C, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(B, -1, 2, heads, C // heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = (q @ k.transpose(-2, -1)) * (C // heads)**-0.5
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        up = self.up(v.transpose(-2, -1).reshape(B, C, h, w))[:, :, :H, :W]
        return self.proj(x + self.up_norm(up.flatten(2).transpose(1, 2)))


class BlockV2(nn.Module):

    def __init__(self, dim, num_heads, sr_ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = AttentionV2(dim, num_heads, sr_ratio)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = FFN(dim)

    def forward(self, x, H, W):
        x = x + self.attn(self.norm1(x), H, W)
        return x + self.mlp(self.norm2(x))


class PublishedResTV2(nn.Module):
    """Features of the stages ``out_indices``, (B, C_i, H_i, W_i), without stochastic depth.

    Args:
        arch (str | dict): A name in ARCHS, or a dict like those in it.
        out_indices (tuple[int]): Stages whose features are returned.
    """

    def __init__(self, arch, out_indices=(0, 1, 2, 3)):
        super().__init__()
        arch = ARCHS[arch] if isinstance(arch, str) else arch
        self.out_indices = out_indices
        dims = (3, *arch['embed_dims'])
        for i in range(out_indices[-1] + 1):
            dim = dims[i + 1]
            self.add_module(f'patch_{i + 1}' if i else 'stem', Embed(dims[i], dim, i == 0))
            heads, ratio = arch['num_heads'][i], arch['sr_ratios'][i]
            blocks = [BlockV2(dim, heads, ratio) for _ in range(arch['depths'][i])]
            self.add_module(f'stage{i + 1}', nn.ModuleList(blocks))
            if i in out_indices:
                self.add_module(f'norm_{i + 1}', nn.LayerNorm(dim, EPS))

    def forward(self, x):
        outs = []
        for i in range(self.out_indices[-1] + 1):
            x, H, W = getattr(self, f'patch_{i + 1}' if i else 'stem')(x)
            B, _, C = x.shape
            for block in getattr(self, f'stage{i + 1}'):
                x = block(x, H, W)
            if i in self.out_indices:
                out = getattr(self, f'norm_{i + 1}')(x)
                outs.append(out.permute(0, 2, 1).reshape(B, C, H, W).contiguous())
            x = x.permute(0, 2, 1).reshape(B, C, H, W)
        return tuple(outs)
