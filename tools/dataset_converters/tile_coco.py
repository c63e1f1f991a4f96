"""Cut the photographs of a COCO file into tiles, with the objects in them.

    python tools/dataset_converters/tile_coco.py pets/train.json --tile 640 --out tiles

TILES gets images/*.png and a JSON file of the same name. Tiles cover a photograph evenly.
Boxes, outlines and masks are cut at the border of a tile. An object of which less than half is
inside is a crowd there, which is neither learned nor evaluated. What is left out is said.
"""
import argparse
from pathlib import Path

from PIL import Image

from mmrest.apis import exit_on_user_error
from mmrest.own_data.tiles import cut


@exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('json', type=Path, help='a COCO file')
    parser.add_argument('--tile', type=int, required=True, help='pixels on each side')
    parser.add_argument(
        '--overlap', type=float, default=0., help='least share of a tile that its neighbour '
        'has, too: objects up to that size are whole in some tile. Default: 0')
    parser.add_argument('--out', type=Path, required=True, help='a new folder')
    args = parser.parse_args()

    Image.MAX_IMAGE_PIXELS = None  # they are the user's own photographs
    print(*cut(args.json, args.tile, args.out, args.overlap), sep='\n')


if __name__ == '__main__':
    main()
