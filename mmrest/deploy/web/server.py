"""A web server for one folder and this computer alone."""
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Union

from ...errors import UserError

HEADERS = {
    # Without these two, browsers share no memory between threads.
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    # As in index.html, whose own policy does not bind its worker.
    'Content-Security-Policy': "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
                               "img-src 'self' blob: data:; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-cache',  # the folder may be written again
}


class Handler(SimpleHTTPRequestHandler):
    # Of its own: the operating system's table may have other types, or none.
    extensions_map = {
        **SimpleHTTPRequestHandler.extensions_map, '.html': 'text/html',
        '.css': 'text/css', '.js': 'text/javascript', '.mjs': 'text/javascript',
        '.json': 'application/json', '.wasm': 'application/wasm',
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args) -> None:
        pass


def make_server(folder: Union[str, Path], port: int = 8000) -> ThreadingHTTPServer:
    """A server of a folder at 127.0.0.1. ``port`` 0 takes any that is free.

    Raises:
        UserError: The port cannot be used.
    """
    try:
        return ThreadingHTTPServer(('127.0.0.1', port), partial(Handler, directory=folder))
    except (OSError, OverflowError) as error:
        raise UserError(f'--port {port} cannot be used: {error}') from error
