"""At which learning rates ResT starts to learn, beside PVTv2 and Swin.

    python tools/dataset_converters/digits_to_coco.py     # the data, once
    python benchmarks/learning_rates.py                   # by estimate 80 minutes of one core
    python benchmarks/learning_rates.py --table           # rows -> docs/learning_rates.md

Each run trains a classifier of digits from scratch, float32, without any augmentation: AdamW,
weight decay 0.05 of matrices, one cycle of the rate (rising for the first 40 % of the
iterations), at one of two sizes: 32 images of 48 pixels or 64 of 64. A row is written as soon
as its run ends, and runs that have their row are passed over. What happens inside ResT goes,
every 10 iterations, to a file of its own for each run.
"""
import argparse
import csv
import math
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.logging import MMLogger
from torch import nn

from mmrest import ResT
from mmrest.models.layers import emsa
from mmrest.ops import emsa_attention

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / 'data/digits/cls'
ROWS = ROOT / 'docs/learning_rates.csv'
TRACES = ROOT / 'work_dirs/learning_rates'
DOC = ROOT / 'docs/learning_rates.md'
ITERATIONS, RISE = 250, 0.4
SIZES = {48: 32, 64: 64}  # pixels a side: images a batch
RATES = (3e-4, 1e-3, 2e-3)
SEEDS = (0, 1)
FIELDS = ('model', 'change', 'side', 'rate', 'seed', 'iterations', 'accuracy', 'loss', 'spread',
          'gradient')
QK = ('attn.q.', 'attn.kv.', 'attn.transform_conv.')

# What a run changes of the recipe; eps makes it another model, to see what the norm does.
CHANGES = {
    '': dict(),
    'gradients clipped at norm 1': dict(clip=1.),
    'rate of q, kv and mix x 0.1': dict(slow=QK),
    'rate of attention x 0.1': dict(slow=('.attn.', )),
    'a rise of 80 %': dict(rise=0.8),
    'beta2 = 0.95': dict(betas=(0.9, 0.95)),
    'projections of attention start at 0': dict(zero='attn.proj.weight'),
    'eps 1e-2 in the norm': dict(eps=1e-2),
}


def build(name):
    """The backbone and its channels; ResT-Lite, PVTv2-B1 and a Swin as small as they are."""
    if name.startswith('ResT'):
        kinds = {'ResT-Lite': 'emsa', 'ResT-Lite without norm': 'emsa_no_norm'}
        return ResT('lite', out_indices=(3, ), drop_path_rate=0., attention=kinds[name]), 512
    from mmdet.models import PyramidVisionTransformerV2, SwinTransformer
    if name == 'PVTv2-B1':
        return PyramidVisionTransformerV2(
            embed_dims=64, num_layers=[2, 2, 2, 2], out_indices=(3, ), drop_path_rate=0.), 512
    return SwinTransformer(
        embed_dims=64, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16), out_indices=(3, ),
        drop_path_rate=0.), 512


MODELS = ('ResT-Lite', 'ResT-Lite without norm', 'PVTv2-B1', 'Swin 64')


class Classifier(nn.Module):

    def __init__(self, name):
        super().__init__()
        self.backbone, channels = build(name)
        self.backbone.init_weights()
        self.head = nn.Linear(channels, 10)
        nn.init.normal_(self.head.weight, std=0.01)

    def features(self, x):
        return self.backbone(x)[-1].mean((2, 3))  # (B, C)

    def forward(self, x):
        return self.head(self.features(x))


def read(split, side):
    """Images (n, 3, side, side) in bytes, and labels."""
    images, labels = [], []
    for path in sorted((DATA / split).glob('*/*.jpg')):
        image = cv2.imread(str(path))[..., ::-1]
        images.append(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
        labels.append(int(path.parent.name))
    if not images:
        raise SystemExit(f'{DATA / split} has no images; first: '
                         'python tools/dataset_converters/digits_to_coco.py')
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def normalized(images):
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return (images - mean) / std


class Watch:
    """Sizes inside ResT, gathered in one forward pass."""

    def __init__(self, backbone):
        self.found, self.on = {}, False
        for name, module in backbone.named_modules():
            kind = type(module).__name__
            if kind in ('EMSA', 'FFN', 'Block', 'PixelAttention'):
                module.register_forward_hook(partial(self._call, name, getattr(self, kind)))

    def _call(self, name, measure, module, args, out):
        if self.on:
            measure(name, module, args, out)

    @torch.no_grad()
    def EMSA(self, name, module, args, out):
        x, hw = args
        B, N, C = x.shape
        h = module.num_heads
        q = module.q(x).view(B, N, h, C // h).transpose(1, 2)
        if module.sr_ratio > 1:
            image = module.sr(x.transpose(1, 2).reshape(B, C, *hw))
            x = module.sr_norm(image.flatten(2).transpose(1, 2))
        k = module.kv(x)[..., :C].view(B, -1, h, C // h).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) * q.shape[-1]**-0.5
        if module.mix_heads:
            scores = module.transform_conv(scores)
        attn = scores.softmax(-1)
        var = (attn - 1 / attn.shape[-1]).square().mean((-2, -1))
        self.found.update({
            f'{name}.out': rms(out),
            f'{name}.scores': scores.std(-1).mean().item() if attn.shape[-1] > 1 else 0.,
            f'{name}.top': attn.max(-1).values.mean().item(),
            f'{name}.r': (var + 1e-5).rsqrt().mean().item(),
            f'{name}.q_weight': rms(module.q.weight),
            f'{name}.proj_weight': rms(module.proj.weight)})

    def FFN(self, name, module, args, out):
        self.found[f'{name}.out'] = rms(out)

    def Block(self, name, module, args, out):
        self.found[f'{name}.in'] = rms(args[0])
        self.found[f'{name}.out'] = rms(out)
        self.found[f'{name}.spread'] = spread(out.mean(1))

    @torch.no_grad()
    def PixelAttention(self, name, module, args, out):
        gate = module.pa_conv(args[0]).sigmoid()
        self.found[f'{name}.gate'] = gate.mean().item()
        self.found[f'{name}.shut'] = (gate < 0.01).float().mean().item()


def rms(x):
    return x.detach().square().mean().sqrt().item()


def spread(features):
    """How much of features (B, C) tells images apart: 0 if all images have the same."""
    features = features.detach()
    return (features.std(0).square().mean() / features.square().mean()).sqrt().item()


def train(name, change, side, rate, seed, trace):
    """One run; its row."""
    options = CHANGES[change]
    torch.manual_seed(seed)
    model = Classifier(name)
    if 'eps' in options:
        emsa.emsa_attention = partial(emsa_attention, eps=options['eps'])
    else:
        emsa.emsa_attention = emsa_attention
    if 'zero' in options:
        for key, p in model.named_parameters():
            if key.endswith(options['zero']):
                nn.init.zeros_(p)
    watch = Watch(model.backbone)
    groups = {}
    for key, p in model.named_parameters():
        slow = any(part in key for part in options.get('slow', ()))
        groups.setdefault((0.1 if slow else 1., 0.05 if p.ndim > 1 else 0.), []).append(p)
    optimizer = torch.optim.AdamW(
        [dict(params=params, weight_decay=decay) for (_, decay), params in groups.items()],
        lr=rate, betas=options.get('betas', (0.9, 0.999)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [rate * factor for factor, _ in groups], total_steps=ITERATIONS,
        pct_start=options.get('rise', RISE), cycle_momentum=False)
    images, labels = read('train', side)
    val_images, val_labels = read('val', side)
    order = torch.Generator().manual_seed(seed)
    losses, norms = [], []
    with trace.open('w', newline='') as file:
        writer = None
        for i in range(ITERATIONS):
            chosen = torch.randint(len(images), (SIZES[side], ), generator=order)
            watch.on = i % 10 == 0
            features = model.features(normalized(images[chosen]))
            loss = nn.functional.cross_entropy(model.head(features), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(
                model.parameters(), options.get('clip', math.inf)).item())
            losses.append(loss.item())
            if watch.on:
                row = dict(
                    iteration=i, rate=optimizer.param_groups[0]['lr'], loss=losses[-1],
                    gradient=norms[-1], spread=spread(features), moved=0., **watch.found)
            optimizer.step()
            if watch.on:
                watch.on = False
                with torch.no_grad():
                    after = model.features(normalized(images[chosen]))
                row['moved'] = rms(after - features) / rms(features)
                if writer is None:
                    writer = csv.DictWriter(file, row)
                    writer.writeheader()
                writer.writerow({key: f'{value:.4g}' for key, value in row.items()})
                file.flush()
            schedule.step()
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(normalized(x)) for x in val_images.split(64)])
        right = model.head(features).argmax(1) == val_labels
    return dict(
        model=name, change=change, side=side, rate=rate, seed=seed, iterations=ITERATIONS,
        accuracy=round(right.float().mean().item(), 4),
        loss=round(sum(losses[-50:]) / 50, 4), spread=f'{spread(features):.3g}',
        gradient=f'{max(norms):.3g}')


def plan():
    """Every run: the first seed of all before the second, the small size before the large."""
    for seed in SEEDS:
        for name in MODELS:
            for rate in reversed(RATES):
                yield name, '', 48, rate, seed
        if seed == SEEDS[0]:
            for rate in (1e-3, 2e-3):
                for change in list(CHANGES)[1:]:
                    yield 'ResT-Lite', change, 48, rate, seed
    for rate in (1e-3, 2e-3):
        for name in MODELS:
            yield name, '', 64, rate, SEEDS[0]


def key(row):
    return (row['model'], row['change'], int(row['side']), float(row['rate']),
            int(row['seed']))


def rows(path):
    if not path.exists():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def table(found):
    """Markdown: accuracy on held-out digits of each seed, by model, size and rate."""
    lines = ['| model | pixels, batch | ' + ' | '.join(f'{rate:.0e}' for rate in RATES) + ' |',
             '|---' * (2 + len(RATES)) + '|']
    for side, batch in SIZES.items():
        for name in MODELS:
            for change in CHANGES:
                cells = [', '.join(
                    f'{100 * float(row["accuracy"]):.0f}' for row in found
                    if key(row)[:4] == (name, change, side, rate)) for rate in RATES]
                if any(cells):
                    title = name + (f', {change}' if change else '')
                    lines.append(f'| {title} | {side}, {batch} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def write_table(found):
    begin, end = '<!-- table -->\n', '<!-- end of table -->'
    before, rest = DOC.read_text().split(begin)
    DOC.write_text(before + begin + table(found) + '\n' + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--table', action='store_true', help=f'only write {DOC.name}')
    parser.add_argument('--rows', type=Path, default=ROWS, help='the CSV file of rows')
    parser.add_argument('--only', default='',
                        help='runs whose model, change and pixels contain this')
    args = parser.parse_args()
    if args.table:
        write_table(rows(args.rows))
        return
    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel('WARNING')
    TRACES.mkdir(parents=True, exist_ok=True)
    for run in plan():
        name, change, side, rate, seed = run
        if run in map(key, rows(args.rows)) or args.only not in f'{name} {change} {side}':
            continue
        label = f'{name} {change} {side} {rate:.0e} {seed}'
        label = label.replace(' ', '_').replace(',', '').replace('%', 'percent')
        row = train(*run, TRACES / f'{label}.csv')
        new = not args.rows.exists()
        with args.rows.open('a', newline='') as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


if __name__ == '__main__':
    main()
