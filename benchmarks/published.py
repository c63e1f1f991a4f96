"""The published ResT, step by step as its authors compute it: what the benchmarks compare with.

Frozen: it does not get faster when mmrest does. It shares no code with mmrest, has the same
parameter names, and agrees with the golden files (tests/benchmarks/test_published.py). Token
layout, permutes, the eager attention map and its passes are the published ones; only the size
of feature maps is what convolutions give, so that any image goes through.
"""
import torch
from torch import nn

ARCHS = dict(
    lite=((64, 128, 256, 512), (2, 2, 2, 2)),
    small=((64, 128, 256, 512), (2, 2, 6, 2)),
    base=((96, 192, 384, 768), (2, 2, 6, 2)),
    large=((96, 192, 384, 768), (2, 2, 18, 2)),
)
NUM_HEADS = (1, 2, 4, 8)
SR_RATIOS = (8, 4, 2, 1)


def attention(q, k, v, mix, bias, eps=1e-5):
    """The published map: product, 1x1 convolution, softmax, InstanceNorm, product."""
    attn = (q @ k.transpose(-2, -1)) * q.shape[-1]**-0.5
    if mix is None:
        return attn.softmax(dim=-1) @ v
    attn = nn.functional.conv2d(attn, mix, bias)
    attn = nn.functional.instance_norm(attn.softmax(dim=-1), eps=eps)
    return attn @ v


class Position(nn.Module):

    def __init__(self, dim):
        super().__init__()
        self.pa_conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x):
        return x * torch.sigmoid(self.pa_conv(x))


class Stem(nn.Module):

    def __init__(self, dim):
        super().__init__()
        half = dim // 2
        self.conv1 = nn.Conv2d(3, half, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, kernel_size=3, stride=1, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, dim, kernel_size=3, stride=2, padding=1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.pos = Position(dim)

    def forward(self, x):
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        return self.pos(self.conv3(x))


class PatchEmbed(nn.Module):

    def __init__(self, dim_in, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim, kernel_size=3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)
        self.pos = Position(dim)

    def forward(self, x):
        return self.pos(self.norm(self.conv(x)))


class Attention(nn.Module):

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
            self.sr_norm = nn.LayerNorm(dim)
        if num_heads > 1:
            self.transform_conv = nn.Conv2d(num_heads, num_heads, kernel_size=1)

    def forward(self, x, H, W):
        B, N, C = x.shape
        heads = self.num_heads
        q = self.q(x).reshape(B, N, heads, C // heads).permute(0, 2, 1, 3)
        if self.sr_ratio > 1:
            image = x.permute(0, 2, 1).reshape(B, C, H, W)
            x = self.sr(image).reshape(B, C, -1).permute(0, 2, 1)
            x = self.sr_norm(x)
        kv = self.kv(x).reshape(B, -1, 2, heads, C // heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        mix = bias = None
        if heads > 1:
            mix, bias = self.transform_conv.weight, self.transform_conv.bias
        out = attention(q, k, v, mix, bias)
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


class FFN(nn.Module):

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):

    def __init__(self, dim, num_heads, sr_ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, sr_ratio)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FFN(dim)

    def forward(self, x, H, W):
        x = x + self.attn(self.norm1(x), H, W)
        return x + self.mlp(self.norm2(x))


class PublishedResT(nn.Module):
    """Features of the four stages, (B, C_i, H_i, W_i); without stochastic depth."""

    def __init__(self, arch):
        super().__init__()
        dims, depths = ARCHS[arch]
        self.stem = Stem(dims[0])
        for i in range(4):
            if i > 0:
                self.add_module(f'patch_embed_{i + 1}', PatchEmbed(dims[i - 1], dims[i]))
            blocks = [Block(dims[i], NUM_HEADS[i], SR_RATIOS[i]) for _ in range(depths[i])]
            self.add_module(f'stage{i + 1}', nn.ModuleList(blocks))
            self.add_module('norm' if i == 3 else f'norm{i + 1}', nn.LayerNorm(dims[i]))

    def forward(self, x):
        outs = []
        for i in range(1, 5):
            x = self.stem(x) if i == 1 else getattr(self, f'patch_embed_{i}')(x)
            B, C, H, W = x.shape
            x = x.flatten(2).permute(0, 2, 1)
            for block in getattr(self, f'stage{i}'):
                x = block(x, H, W)
            out = getattr(self, 'norm' if i == 4 else f'norm{i}')(x)
            outs.append(out.permute(0, 2, 1).reshape(B, C, H, W).contiguous())
            x = x.permute(0, 2, 1).reshape(B, C, H, W)
        return tuple(outs)
