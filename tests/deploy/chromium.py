"""Chromium without a screen, driven by its DevTools protocol over two pipes."""
import fcntl
import json
import os
import subprocess
import time
from pathlib import Path

FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--remote-debugging-pipe')


class Chromium:
    """One window. Use it in a ``with`` statement, which ends the process.

    Args:
        program (str): Chromium's path.
        profile (Path): An empty folder.
    """

    def __init__(self, program: str, profile: Path):
        pipes = [os.pipe(), os.pipe()]
        # Chromium reads from 3 and writes to 4, which may be taken here.
        reads, writes = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
                         for fd in (pipes[0][0], pipes[1][1]))
        self.process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{reads} 4>&{writes}', 'bash', program, *FLAGS,
             f'--user-data-dir={profile}'], pass_fds=(reads, writes), stderr=subprocess.DEVNULL)
        for fd in (reads, writes, pipes[0][0], pipes[1][1]):
            os.close(fd)
        self.to, self.back = os.fdopen(pipes[0][1], 'wb', 0), os.fdopen(pipes[1][0], 'rb', 0)
        self.session, self.count, self.buffer = {}, 0, b''
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = dict(sessionId=self.call(
            'Target.attachToTarget', targetId=target, flatten=True)['sessionId'])

    def __enter__(self) -> 'Chromium':
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait()
        self.to.close()
        self.back.close()

    def call(self, method: str, **params) -> dict:
        """Send a command of the protocol and return its answer. Events are dropped."""
        self.count += 1
        message = dict(id=self.count, method=method, params=params, **self.session)
        self.to.write(json.dumps(message).encode() + b'\0')
        while True:
            answer = json.loads(self.read())
            if answer.get('id') == self.count:
                assert 'error' not in answer, (method, answer['error'])
                return answer['result']

    def read(self) -> bytes:
        while b'\0' not in self.buffer:
            part = os.read(self.back.fileno(), 2**20)
            assert part, 'Chromium ended'
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b'\0')
        return message

    def evaluate(self, expression: str):
        """The value of an expression, or of its promise, in the page."""
        found = self.call('Runtime.evaluate', expression=expression, awaitPromise=True,
                          returnByValue=True)
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def open(self, address: str) -> None:
        self.call('Page.navigate', url=address)
        self.wait("document.readyState === 'complete'")

    def wait(self, condition: str, seconds: float = 120.) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, (condition, self.evaluate('document.body.innerText'))
            time.sleep(0.05)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input element."""
        node = self.call('Runtime.evaluate', expression=f'document.querySelector({selector!r})')
        self.call('DOM.setFileInputFiles', files=[str(file) for file in files],
                  objectId=node['result']['objectId'])
