"""A small TCP relay for trying out bad networks: delays, stalls, resets, partitions, flipped bits.

On its own: python -m experiments.deployment.relay LISTEN_HOST:PORT TARGET_HOST:PORT delay_s=0.2
"""

import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 1 << 16
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset."""


@dataclass
class Relay:
    """Passes bytes on between whoever connects and a target; its fields can be changed while it
    runs.
    """

    target: tuple[str, int]
    listen: tuple[str, int] = ("127.0.0.1", 0)
    delay_s: float = 0.0
    """Added to each chunk, in each direction."""
    stalled: bool = False
    """Connections stay open and nothing passes."""
    partitioned: bool = False
    """New connections are refused and open ones reset."""
    flip: int = 0
    """So many more chunks to the target get one bit flipped."""
    passed: int = 0
    """Bytes so far, both ways."""
    flipped: int = 0
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Relay":
        self._server = socket.create_server(self.listen)
        self.address = "{}:{}".format(*self._server.getsockname()[:2])
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self.reset()

    def reset(self) -> None:
        """Reset every open connection."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(inner,), daemon=True).start()

    def _carry(self, inner: socket.socket) -> None:
        """Pass on one connection, both ways, until it ends."""
        with inner, suppress(OSError):
            if self.partitioned:
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                return
            with socket.create_connection(self.target, timeout=10) as outer:
                outer.settimeout(None)
                with self._lock:
                    self._open += [inner, outer]
                back = threading.Thread(target=self._pump, args=(outer, inner, False), daemon=True)
                back.start()
                self._pump(inner, outer, True)
                back.join()
                with self._lock:
                    self._open = [kept for kept in self._open if kept not in (inner, outer)]

    def _pump(self, source: socket.socket, sink: socket.socket, inward: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                if self.delay_s:
                    time.sleep(self.delay_s)
                while self.stalled:
                    time.sleep(0.05)
                if self.partitioned:
                    self.reset()
                    return
                if inward and self.flip and len(chunk) > 200:
                    self.flip = self.flip - 1
                    self.flipped = self.flipped + 1
                    chunk = chunk[:150] + bytes([chunk[150] ^ 1]) + chunk[151:]
                self.passed += len(chunk)
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    listen, target, *settings = sys.argv[1:]
    relay = Relay(_address(target), _address(listen))
    for name, _, value in (setting.partition("=") for setting in settings):
        setattr(relay, name, float(value))
    with relay:
        threading.Event().wait()


if __name__ == "__main__":
    main()
