"""A port of the published ResT: the benchmarks and the tests compare mmrest with it.

It computes each step as the authors' code does: tokens by permutes, the whole attention map in
memory. It shares no code with mmrest and has the published parameter names. It differs in one
thing: a feature map has the size that its convolution gives, so images need not be multiples
of 32. tests/benchmarks/test_published.py compares it with the golden files.

Do not make it faster.
"""
import re

import torch
from torch import nn

NUM_HEADS = (1, 2, 4, 8)
SR_RATIOS = (8, 4, 2, 1)
ARCHS = {
    name: dict(embed_dims=dims, depths=depths, num_heads=NUM_HEADS, sr_ratios=SR_RATIOS)
    for name, dims, depths in (
        ('lite', (64, 128, 256, 512), (2, 2, 2, 2)),
        ('small', (64, 128, 256, 512), (2, 2, 6, 2)),
        ('base', (96, 192, 384, 768), (2, 2, 6, 2)),
        ('large', (96, 192, 384, 768), (2, 2, 18, 2)),
    )
}


def published_names(state):
    """mmrest's parameters by their published names: the last stage's norm has no number."""
    return {re.sub(r'^norm4\.', 'norm.', name): value for name, value in state.items()}


def attention(q, k, v, mix=None, bias=None, normalize=True, eps=1e-5):
    """Product, 1x1 convolution over heads, softmax, InstanceNorm, product: (B, h, N, d).

    ``mix`` (h, h) and ``bias`` (h,) are the convolution's; ``None`` leaves it out.
    """
    attn = (q @ k.transpose(-2, -1)) * q.shape[-1]**-0.5  # (B, h, N, M)
    if mix is not None:
        attn = nn.functional.conv2d(attn, mix[:, :, None, None], bias)
    attn = attn.softmax(dim=-1)
    if normalize:
        attn = nn.functional.instance_norm(attn, eps=eps)
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
    """EMSA. One head has neither mixing nor norm; table 6 of the paper leaves them out too."""

    def __init__(self, dim, num_heads, sr_ratio, mix_heads=True, normalize=True):
        super().__init__()
        self.normalize = normalize and num_heads > 1
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio + 1, stride=sr_ratio,
                                padding=sr_ratio // 2, groups=dim)
            self.sr_norm = nn.LayerNorm(dim)
        if mix_heads and num_heads > 1:
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
        if hasattr(self, 'transform_conv'):
            mix = self.transform_conv.weight[:, :, 0, 0]
            bias = self.transform_conv.bias
        out = attention(q, k, v, mix, bias, self.normalize)
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
    """Normalised features of the stages ``out_indices``, (B, C_i, H_i, W_i).

    It has no stochastic depth.

    Args:
        arch (str | dict): A name in ARCHS, or a dict like those in it.
        out_indices (tuple[int]): Stages whose features are returned.
        norm_in_trunk (bool): Feed each output norm into the next stage, as the published
            detection code does.
    """

    def __init__(self, arch, out_indices=(0, 1, 2, 3), norm_in_trunk=False):
        super().__init__()
        arch = ARCHS[arch] if isinstance(arch, str) else arch
        self.out_indices, self.norm_in_trunk = out_indices, norm_in_trunk
        dims = arch['embed_dims']
        self.stem = Stem(dims[0])
        for i in range(out_indices[-1] + 1):
            if i > 0:
                self.add_module(f'patch_embed_{i + 1}', PatchEmbed(dims[i - 1], dims[i]))
            heads, ratio = arch['num_heads'][i], arch['sr_ratios'][i]
            blocks = [Block(dims[i], heads, ratio) for _ in range(arch['depths'][i])]
            self.add_module(f'stage{i + 1}', nn.ModuleList(blocks))
            if i in out_indices:
                self.add_module(norm_name(i), nn.LayerNorm(dims[i]))

    def forward(self, x):
        outs = []
        for i in range(self.out_indices[-1] + 1):
            x = getattr(self, f'patch_embed_{i + 1}')(x) if i > 0 else self.stem(x)
            B, C, H, W = x.shape
            x = x.flatten(2).permute(0, 2, 1)
            for block in getattr(self, f'stage{i + 1}'):
                x = block(x, H, W)
            if i in self.out_indices:
                out = getattr(self, norm_name(i))(x)
                outs.append(out.permute(0, 2, 1).reshape(B, C, H, W).contiguous())
                if self.norm_in_trunk:
                    x = out
            x = x.permute(0, 2, 1).reshape(B, C, H, W)
        return tuple(outs)


def norm_name(i):
    """The classifier's own norm, of the last stage, has no number."""
    return 'norm' if i == 3 else f'norm{i + 1}'
