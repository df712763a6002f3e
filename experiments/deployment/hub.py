"""A hub of one's own: hands a SuperLink one signed bundle, so that nodes can check who made it.

    flwr build                                             # makes PUBLISHER.NAME.VERSION.HASH.fab
    python -m experiments.deployment.hub keys FOLDER       # publisher.key, trusted.yaml
    python -m experiments.deployment.hub serve BUNDLE.fab FOLDER PORT

The SuperLink is started with FLWR_SUPERGRID_API_URL=http://127.0.0.1:PORT/v1, nodes with
trusted.yaml. The key stays where bundles are signed; a SuperLink, and whoever breaks into it,
cannot sign.
"""

import base64
import hashlib
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

KEY_ID = "fpk_publisher"


def write_keys(folder: Path) -> None:
    """Write a publisher's key, and the file for `flower-supernode --trusted-entities`."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    folder.mkdir(parents=True, exist_ok=True)
    with open(
        os.open(folder / "publisher.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
    ) as out:
        out.write(private)
    (folder / "trusted.yaml").write_text(f"{KEY_ID}: '{public.decode()}'\n")


def signature(bundle: bytes, key: ed25519.Ed25519PrivateKey) -> dict[str, str | int]:
    """Return what Flower wants to know of a signature: of the time (8 bytes) and the bundle's
    SHA-256.
    """
    now = int(time.time())
    signed = key.sign(now.to_bytes(8, byteorder="big") + hashlib.sha256(bundle).digest())
    text = base64.urlsafe_b64encode(signed).decode().rstrip("=")
    return {"public_key_id": KEY_ID, "signature": text, "signed_at": now}


def hub(bundle: bytes, key: ed25519.Ed25519PrivateKey, port: int = 0) -> ThreadingHTTPServer:
    """Return a server on loopback that answers whoever asks for a bundle with this one."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            where = f"http://127.0.0.1:{self.server.server_address[1]}/bundle"
            told = {"fab_url": where, "verifications": [signature(bundle, key)]}
            self._send(json.dumps(told).encode(), "application/json")

        def do_GET(self) -> None:
            self._send(bundle, "application/octet-stream")

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            return

    return ThreadingHTTPServer(("127.0.0.1", port), Answer)


def load_key(path: Path) -> ed25519.Ed25519PrivateKey:
    found = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(found, ed25519.Ed25519PrivateKey), "a publisher's key is Ed25519"
    return found


def main() -> None:
    if sys.argv[1] == "keys":
        write_keys(Path(sys.argv[2]))
        return
    bundle, folder, port = sys.argv[2:]
    hub(
        Path(bundle).read_bytes(), load_key(Path(folder) / "publisher.key"), int(port)
    ).serve_forever()


if __name__ == "__main__":
    main()
