"""Compares the objects that MMDetection loads with those of the COCO file."""
from collections import defaultdict
from typing import Dict, List, Tuple

from .findings import Split
from .form import places
from .load import Sample

LEFT = 'MMDetection leaves such objects out: correct or remove them'
RULES = (  # by which CocoDataset leaves an object out, in its order
    (lambda thing, image: thing.get('ignore'), f"'ignore' is 1; {LEFT}"),
    (lambda thing, image: min(thing['bbox'][2:]) < 0,
     f"'bbox' is inverted: a size below 0; {LEFT}"),
    (lambda thing, image: min(thing['bbox'][2:]) < 1 or thing['area'] <= 0,
     f"'bbox' is empty: less than a pixel wide or high, or 'area' is 0; {LEFT}"),
    (lambda thing, image: _outside(thing, image) >= 1,
     f"'bbox' is outside of the image; {LEFT}"))
Things = Dict[int, List[Tuple[int, dict]]]  # of an image: number in the file, and annotation


def judge_objects(split: Split, dataset: object, infos: List[dict], kept: List[dict],
                  samples: List[Sample]) -> None:
    """Add findings, counts and boxes of the objects to ``split``.

    Args:
        split (Split): Has the content of the file.
        dataset (CocoDataset): Has read the file.
        infos (list[dict]): What it has of all images.
        kept (list[dict]): What it does not leave out.
        samples (list[Sample]): What came of ``kept``.
    """
    judge = _Judge(split, dataset, kept)
    judge.images_left_out(infos)
    for info in infos:
        judge.objects_left_out(info)
    for info, sample in zip(kept, samples):
        if not sample.missing and (not sample.error or sample.lost):
            judge.sample(info, sample)
    judge.tell()


class _Judge:

    def __init__(self, split, dataset, kept):
        self.split, self.dataset, self.kept = split, dataset, kept
        self.images = {image['id']: image for image in split.content['images']}
        self.things = defaultdict(list)
        for number, thing in enumerate(split.content['annotations']):
            self.things[thing['image_id']].append((number, thing))
        self.wrong = defaultdict(list)  # numbers of annotations by level and words
        self.turned, self.sizes = [], []
        self.names = {category['id']: category['name']
                      for category in split.content['categories']}

    def images_left_out(self, infos):
        """What filter_data takes away: small images, and those without objects."""
        kept = {info['img_id'] for info in self.kept}
        gone = [self.images[info['img_id']] for info in infos if info['img_id'] not in kept]
        least = (self.dataset.filter_cfg or {}).get('min_size', 0)
        small = [i['file_name'] for i in gone if min(i['width'], i['height']) < least]
        bare = [i for i in gone if not self.things[i['id']]
                and min(i['width'], i['height']) >= least]
        self.split.left_out = len(bare)
        self.split.add('W', small, f'less than {least} pixels wide or high: the training '
                       'leaves them out')
        if len(gone) > len(small) + len(bare):
            others = [i['file_name'] for i in gone if i not in bare and i['file_name'] not in
                      small]
            self.split.add('W', others, 'MMDetection leaves these images out')

    def objects_left_out(self, info):
        """What parse_data_info takes away, and which rule it was."""
        own = self.things[info['img_id']]
        if len(own) == len(info['instances']):
            return
        image = self.images[info['img_id']]
        raw = dict(image, img_id=image['id'])
        present = [(number, thing) for number, thing in own if self.dataset.parse_data_info(
            dict(raw_img_info=raw, raw_ann_info=[thing]))['instances']]
        self.things[info['img_id']] = present
        for number, thing in own:
            if (number, thing) not in present and (
                    self.names[thing['category_id']] in self.dataset.metainfo['classes']):
                self.wrong['W', next((what for rule, what in RULES if rule(thing, image)),
                                     LEFT)].append(number)

    def sample(self, info, sample):
        """One image: its size, its objects that cannot be loaded or learned, and the others."""
        image, own = self.images[info['img_id']], self.things[info['img_id']]
        for position, what in sample.lost.items():
            level = 'W' if what.endswith('outline') else 'E'
            self.wrong[level, what].append(own[position][0])
        if sample.error:
            return
        said = image['width'], image['height']
        if sample.size != said:
            turned = sample.turned and sample.size[::-1] == said
            (self.turned if turned else self.sizes).append(
                image['file_name'] if turned else
                f'{image["file_name"]} (is {sample.size[0]}x{sample.size[1]})')
        for _, other in sample.pairs:
            self.wrong['W', 'two boxes of one class on one object (IoU above 0.8): leave one '
                       'out'].append(own[other][0])
        self._objects(image, own, sample)

    def _objects(self, image, own, sample):
        classes, empty = self.dataset.metainfo['classes'], True
        for (number, thing), label, learned in zip(own, sample.labels, sample.learned):
            name = self.names[thing['category_id']]
            if classes[label] != name:
                self.wrong['E', f'MMDetection takes the class for {classes[label]}'
                           ].append(number)
            if _outside(thing, image) > 0:
                self.wrong['W', "'bbox' is partly outside of the image, and cut there. If many "
                           'are: it is x, y, width, height in pixels, and not two corners'
                           ].append(number)
            if not learned:
                continue
            empty = False
            self.split.counts[name] += 1
            self.split.boxes.append(
                (name, *thing['bbox'][2:], image['width'], image['height']))
        self.split.empty += empty

    def tell(self):
        split, content = self.split, self.split.content
        split.add('E', self.turned, "'width' and 'height' (and the boxes?) are those before "
                  'EXIF turns the image upright, as mm reads it: save the images without EXIF')
        split.add('E', self.sizes, "the image has other 'width' and 'height': correct them, "
                  'and the boxes if they are for another size')
        for (level, what), numbers in self.wrong.items():
            if what.endswith('outline') and len(numbers) == len(content['annotations']):
                level = 'E'  # all of them
            split.add(level, places(content, 'annotations', numbers), what)
        if not split.usable:  # objects may be missing with their images
            return
        crowds = {self.names[thing['category_id']] for thing in content['annotations']
                  if thing['iscrowd']}
        split.add('W', sorted(crowds - set(split.counts)),
                  'only crowd regions, which are not used in training')
        split.add('W', (n for n in self.dataset.metainfo['classes']
                        if n not in split.counts and n not in crowds),
                  'no objects of these categories, so that nothing learns them')


def _outside(thing, image):
    """1 if a box is outside of its image, between 0 and 1 if a strip of over a pixel is."""
    x, y, w, h = thing['bbox']
    inside_w = min(x + w, image['width']) - max(x, 0)
    inside_h = min(y + h, image['height']) - max(y, 0)
    if min(inside_w, inside_h) <= 0:
        return 1
    return 1 - inside_w * inside_h / (w * h) if max(w - inside_w, h - inside_h) > 1 else 0
