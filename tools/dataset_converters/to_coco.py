"""Make COCO JSON of data in another format: Pascal VOC, YOLO or LabelMe.

    python tools/dataset_converters/to_coco.py voc VOCdevkit/VOC2007 --out pets
    python tools/dataset_converters/to_coco.py yolo pets/data.yaml --out pets_coco
    python tools/dataset_converters/to_coco.py labelme photos --out pets --val 0.2

OUT gets train.json and, from the format's own lists or folders or by --val, val.json and
test.json. Photographs stay where they are: the JSON leads to them from its folder. Numbers are
kept as they stand. What is left out, or looks wrong and is kept, is said in a line with W.

voc      JPEGImages, Annotations and ImageSets/Main, or XML files beside their photographs.
         Maps in SegmentationObject become masks. A photograph of the XML's own name goes
         before <filename>; objects marked difficult become crowds, which are neither learned
         nor evaluated. Corners are taken as they stand, as most tools write them, from 0. Those
         of Pascal VOC's own photographs count from 1: see --from-one.
yolo     A data.yaml, its folder, or a folder of photographs with classes.txt. Labels are boxes,
         outlines, or both. Values of 0 to 1 are those of the photograph turned upright.
labelme  JSON files beside their photographs. Polygons, rectangles, and circles as outlines;
         parts with one group_id are one object. Points and lines are left out.

Roboflow and CVAT write these, too. COCO files need no conversion.
"""
import argparse
from pathlib import Path

from PIL import Image

from mmrest.apis import exit_on_user_error
from mmrest.own_data.formats import FORMATS, convert


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('format', choices=FORMATS)
    parser.add_argument('source', type=Path, nargs='+', help='folders, or files')
    parser.add_argument('--out', type=Path, required=True, help='a new folder')
    parser.add_argument(
        '--val', type=float, default=0., help='share of the photographs to validate on. A hash '
        'of the files chooses; identical pictures stay together, and each class gets into '
        'both parts where that can be')
    parser.add_argument(
        '--from-one', action='store_true', help='voc: the first pixel is number 1, and a box '
        'has all of its last pixel: subtract 1 from xmin and ymin')
    args = parser.parse_args()

    Image.MAX_IMAGE_PIXELS = None  # they are the user's own photographs
    print(*convert(args.format, args.source, args.out, args.val, args.from_one), sep='\n')


if __name__ == '__main__':
    main()
