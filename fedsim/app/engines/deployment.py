"""`fedsim deploy init`: writes the files of a federation with TLS and known nodes.

These are certificates, keys, configs, start scripts and systemd units.
"""

import datetime
import ipaddress
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.app.engines.connection import NAME, script

DAYS = 365
Key = ec.EllipticCurvePrivateKey


def write_deployment(folder: Path, host: str, port: int, nodes: int) -> None:
    """Write all files. Only their owner can read the private keys."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, certificate = write_authority(folder)
    write_server(folder, host, authority, certificate)
    names = [f"node-{i}" for i in range(1, nodes + 1)]
    for name in names:
        write_node_key(folder, name)
    write_connection(folder, host, port)
    write_scripts(folder, host, port, names)
    write_units(folder)


def write_authority(folder: Path) -> tuple[Key, x509.Certificate]:
    """Write `ca.key` and `ca.crt`: a CA that serves only this federation."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsim federation CA")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = _certificate(name, name, key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    signed = made.add_extension(usage, critical=True).sign(key, hashes.SHA384())
    _write_key(folder / "ca.key", key, serialization.PrivateFormat.PKCS8)
    (folder / "ca.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return key, signed


def write_server(folder: Path, host: str, authority: Key, issuer: x509.Certificate) -> None:
    """Write `server.key` and `server.crt`, valid for `host` and for this machine itself."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    names = dict.fromkeys([host, "localhost", "127.0.0.1"])
    made = _certificate(name, issuer.subject, key.public_key())
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
    made = made.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
    )
    about = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    signed = made.add_extension(about, critical=False).sign(authority, hashes.SHA384())
    _write_key(folder / "server.key", key, serialization.PrivateFormat.PKCS8)
    (folder / "server.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))


def write_node_key(folder: Path, name: str) -> None:
    """Write `NAME.key` (OpenSSH, NIST P-384) and `NAME.pub`, which the SuperLink will register."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_key(folder / f"{name}.key", key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    (folder / f"{name}.pub").write_bytes(public + f" {name}\n".encode())


def write_connection(folder: Path, host: str, port: int) -> None:
    """Write Flower's config for the people who start runs with FLWR_HOME=FOLDER/flwr."""
    found = {"address": f"{host}:{port}", "root-certificates": str(folder / "ca.crt")}
    (folder / "flwr").mkdir()
    text = tomli_w.dumps({"superlink": {"default": NAME, NAME: found}})
    (folder / "flwr" / "config.toml").write_text(text, encoding="utf-8")


def superlink_command(folder: Path, port: int) -> list[str]:
    """Return the command that starts the SuperLink: TLS, known nodes only, state on disk."""
    secrets = [
        "--ssl-certfile",
        "server.crt",
        "--ssl-keyfile",
        "server.key",
        "--ssl-ca-certfile",
        "ca.crt",
    ]
    secrets = [str(folder / word) if not word.startswith("--") else word for word in secrets]
    where = ["--host", "0.0.0.0", "--port", str(port), "--database", str(folder / "superlink.db")]
    return [
        str(script("flower-superlink")),
        *where,
        *secrets,
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def node_command(folder: Path, host: str, port: int, name: str, own_port: int) -> list[str]:
    """Return the command that starts a node, without its node-config."""
    return [
        str(script("flower-supernode")),
        *("--superlink", f"{host}:{port}", "--root-certificates", str(folder / "ca.crt")),
        *("--auth-supernode-private-key", str(folder / f"{name}.key"), "--port", str(own_port)),
    ]


def write_scripts(folder: Path, host: str, port: int, names: list[str]) -> None:
    """Write one script for each process.

    Also write `NAME.conf`, the `node-config` of each node: where its data and its state lie.
    """
    env = f"export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PATH={_path()}:$PATH\n"
    home = f"export FLWR_HOME={shlex.quote(str(folder))}"
    body = (
        f"mkdir -p {shlex.quote(str(folder / 'server'))} && "
        f"cd {shlex.quote(str(folder / 'server'))}\n"
    )
    command = shlex.join(superlink_command(folder, port))
    _write_script(folder / "superlink.sh", f"{env}{home}/server\n{body}exec {command}\n")
    lines = [
        f"flwr supernode register {shlex.quote(str(folder / f'{n}.pub'))} {NAME}" for n in names
    ]
    _write_script(folder / "register.sh", f"{env}{home}/flwr\n" + "\n".join(lines) + "\n")
    for i, name in enumerate(names, start=1):
        state = folder / name
        (folder / f"{name}.conf").write_text(
            f'data-path="{state}/data" state-path="{state}/state"\n', encoding="utf-8"
        )
        command = shlex.join(node_command(folder, host, port, name, 9094 + i))
        own = f'--node-config "$(cat {shlex.quote(str(folder / f"{name}.conf"))})"'
        body = f"mkdir -p {shlex.quote(str(state))} && cd {shlex.quote(str(state))}\n"
        _write_script(folder / f"{name}.sh", f"{env}{home}/{name}\n{body}exec {command} {own}\n")


def write_units(folder: Path) -> None:
    """Write systemd units that run the scripts: the SuperLink's, and fedsim-node@N for node N."""
    for name, what, command in (
        ("fedsim-superlink", "Flower SuperLink of a fedsim federation", folder / "superlink.sh"),
        ("fedsim-node@", "Flower SuperNode %i of a fedsim federation", f"{folder}/node-%i.sh"),
    ):
        (folder / f"{name}.service").write_text(
            UNIT.format(what=what, command=command, folder=folder)
        )


UNIT = """\
[Unit]
Description={what}
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
Restart=always
RestartSec=5
KillSignal=SIGTERM
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={folder}

[Install]
WantedBy=multi-user.target
"""


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key)
    made = made.serial_number(x509.random_serial_number()).not_valid_before(
        now - datetime.timedelta(hours=1)
    )
    made = made.not_valid_after(now + datetime.timedelta(days=DAYS))
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _write_key(path: Path, key: Key, form: serialization.PrivateFormat) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)


def _write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\nset -e\n{text}", encoding="utf-8")
    path.chmod(0o700)


def _path() -> str:
    return shlex.quote(str(Path(sys.executable).parent))
