"""Write a page on which an exported model runs in the browser, for any web server.

    python tools/deployment/web.py detector.onnx --out page --examples photo.jpg --serve

The model is a file of tools/deployment/export_onnx.py: a detector, a classifier or a segmenter.
What the page finds is what run_onnx.py finds. No picture leaves the computer. The first time,
npm fetches ONNX Runtime for browsers (33 MB).
"""
import argparse
from typing import List, Optional

from mmrest.apis import exit_on_user_error
from mmrest.deploy.web import write_page
from mmrest.deploy.web.server import make_server


@exit_on_user_error
def main(args: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a file of export_onnx.py')
    parser.add_argument('--out', required=True, help='the folder to write')
    parser.add_argument('--examples', nargs='+', default=(), help='images to offer on the page')
    parser.add_argument('--serve', action='store_true',
                        help='serve the folder on this computer, with as many threads as the '
                        'browser allows')
    parser.add_argument('--port', type=int, default=8000)
    args = parser.parse_args(args)
    write_page(args.model, args.out, args.examples)
    print(f'{args.out}/index.html: put the folder on any web server')
    if args.serve:
        with make_server(args.out, args.port) as server:
            print(f'http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)', flush=True)
            server.serve_forever()


if __name__ == '__main__':
    main()
