"""Makes the bundles beside it anew, with the tool that data scientists use.

    pip install 'model-signing==1.1.1' pyopenssl      # in an environment of its own: it is large
    python tests/fleet_server/provenance/make_bundles.py BIN_OF_THAT_ENVIRONMENT

Nothing of edgefleet takes part, so that the verifier is tested against what others write. Private
keys are thrown away; the certificates last for a hundred years, since no test waits for them.
"""

import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = Path(__file__).parent / "bundles"
MODEL = b"the bytes of a float model, as far as a signature is concerned\n"
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(2126, 1, 1, tzinfo=datetime.UTC)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    form = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    path.write_bytes(key.private_bytes(*form))
    return path


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signs, False, False, False, False, not signs, not signs, False, False)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    mail: str = "",
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    authority = issuer is None or not mail
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(END)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(_usage(signs=not authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
        )
    )
    if mail:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.RFC822Name(mail)]), False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
    return builder.sign(issuer_key, hashes.SHA256())


def main(tools: Path) -> None:
    """Write public keys, an authority and bundles."""
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        release = folder / "release"
        release.mkdir()
        for path in (HERE / "model.onnx", release / "model.onnx"):
            path.write_bytes(MODEL)
        (release / "golden.npz").write_bytes(b"examples\n")

        def sign(method: str, bundle: str, what: Path, *more: str) -> None:
            words = (tools / "model_signing", "sign", method, "--signature", HERE / bundle)
            subprocess.run([str(word) for word in (*words, *more, what)], check=True)

        for curve in (ec.SECP256R1(), ec.SECP384R1()):
            key = ec.generate_private_key(curve)
            path = _write_key(folder / curve.name, key)
            form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (HERE / f"{curve.name}.pem").write_bytes(key.public_key().public_bytes(*form))
            sign("key", f"{curve.name}.sig", HERE / "model.onnx", "--private_key", str(path))
            sign("key", f"{curve.name}-folder.sig", release, "--private_key", str(path))

        root_key, middle_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        root = _certificate("research", root_key, None, root_key)
        middle = _certificate("research, team vision", middle_key, root, root_key)
        leaf = _certificate("Ann", key, middle, middle_key, "ann@example.org")
        for file, certificate in (("root", root), ("middle", middle), ("leaf", leaf)):
            (folder / file).write_bytes(certificate.public_bytes(Encoding.PEM))
        (HERE / "authority.pem").write_bytes(root.public_bytes(Encoding.PEM))
        sign(
            *("certificate", "certificate.sig", HERE / "model.onnx"),
            *("--private_key", str(_write_key(folder / "ann", key))),
            *("--signing_certificate", str(folder / "leaf")),
            *("--certificate_chain", str(folder / "middle")),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
