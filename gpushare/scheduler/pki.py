"""The scheduler's own certificate authority and the certificate it shows.

Imports cryptography and the standard library. A CA of 10 years (EC P-256) is made once; under it a leaf of
90 days that is re-made by itself when a third of its life is left or the listen address changes.
Invariants: private keys are 0600 from their first byte, in a 0700 directory, and a key that others could
read is refused, never used; a file appears whole or not at all; a crash between two files is mended at the
next start without a new CA key, so joined clients go on trusting it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gpushare.address import is_wildcard, parse_address
from gpushare.errors import FailedPreconditionError, GpushareError
from gpushare.reasons import Reason

CA_LIFE: Final = timedelta(days=3650)
LEAF_LIFE: Final = timedelta(days=90)
LEAF_RENEWED_AT: Final = LEAF_LIFE / 3
# A host whose clock is a little behind must not see a certificate from the future.
BACKDATED: Final = timedelta(days=1)
RECHECK_S: Final = 3600.0

# What cryptography raises for a key, certificate or signature that is not what it should be; it has no
# common class.
_NOT_USABLE: Final = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound)

CA_KEY_FILE, CA_FILE, KEY_FILE, CERT_FILE = "ca.key", "ca.pem", "server.key", "server.pem"


_log = structlog.get_logger(__name__)


class Pki(NamedTuple):
    """All PEM: what clients trust, what the server shows, and its key; `not_after` is the end of the leaf."""

    ca_pem: str
    cert_pem: bytes
    key_pem: bytes
    not_after: datetime


class PkiLeaf:
    """The server's certificate as it is now, for `rpc.bind`: looks once an hour whether it must be
    renewed."""

    def __init__(self, directory: Path, listen: str, names: Sequence[str] = ()) -> None:
        self._directory = directory
        self._listen = listen
        self._names = tuple(names)
        self.pki = ensure_pki(directory, listen, names)
        self._checked_s = time.monotonic()

    def __call__(self) -> tuple[bytes, bytes]:
        """(private key, certificate), PEM. Where renewing fails the old pair is shown until it expires."""
        if time.monotonic() - self._checked_s > RECHECK_S:
            self._checked_s = time.monotonic()
            try:
                self.pki = ensure_pki(self._directory, self._listen, self._names)
            except (OSError, GpushareError) as err:
                # A third of its life is left to try again.
                _log.error("certificate not renewed", error=str(err), valid_until=str(self.pki.not_after))
        return self.pki.key_pem, self.pki.cert_pem


def ensure_pki(directory: Path, listen: str, names: Sequence[str] = (), *, now: datetime | None = None) -> Pki:
    """The CA and a leaf that is valid now, made or re-made where needed.

    The leaf is for localhost, 127.0.0.1, ::1, this host's name, the host of `listen` and `names` (hosts or
    host:port). Raises FailedPreconditionError for a key that others can read or that cannot be parsed,
    OSError from the disk.
    """
    now = now or datetime.now(UTC)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory):
        os.chmod(directory, 0o700)
        ca_key, ca = _ensure_ca(directory, now)
        hosts = _hosts(listen, names)
        key_pem = _read(directory / KEY_FILE, secret=True)
        cert_pem = _read(directory / CERT_FILE)
        leaf = _usable_leaf(key_pem, cert_pem, ca, hosts, now)
        if leaf is None:
            key_pem, cert_pem, leaf = _make_leaf(directory, ca_key, ca, hosts, now)
        assert key_pem is not None
        assert cert_pem is not None
        return Pki(_cert_pem(ca).decode(), cert_pem, key_pem, leaf.not_valid_after_utc)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _ensure_ca(directory: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_pem = _read(directory / CA_KEY_FILE, secret=True)
    if key_pem is None:
        key = ec.generate_private_key(ec.SECP256R1())
        _write(directory / CA_KEY_FILE, _key_pem(key), 0o600)
    else:
        key = _parsed_key(key_pem, directory / CA_KEY_FILE)
    cert_pem = _read(directory / CA_FILE)
    if cert_pem is not None:
        ca = _parsed_cert(cert_pem)
        if ca is not None and ca.public_key() == key.public_key() and ca.not_valid_after_utc > now:
            return key, ca
    # No certificate, or not the key's own: a new one from the same key. Its name and key ids are as before,
    # so that whoever trusts an older certificate of this key accepts what it signs.
    ca = _ca_certificate(key, now)
    _write(directory / CA_FILE, _cert_pem(ca), 0o644)
    return key, ca


def _ca_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    public = key.public_key()
    key_id = x509.SubjectKeyIdentifier.from_public_key(public)
    # The key's own digest in the name keeps the CAs of several schedulers apart in any tool that lists them.
    name = _name(f"gpushare CA {key_id.digest.hex()[:12]}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(key_id, critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_leaf(
    directory: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    hosts: frozenset[str],
    now: datetime,
) -> tuple[bytes, bytes, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    issuer_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    leaf = (
        x509.CertificateBuilder()
        .subject_name(_name("gpushare scheduler"))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(min(now + LEAF_LIFE, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_san(host) for host in sorted(hosts)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key_pem, cert_pem = _key_pem(key), _cert_pem(leaf)
    # A crash between the two leaves a pair that does not match, which the next start re-makes.
    _write(directory / KEY_FILE, key_pem, 0o600)
    _write(directory / CERT_FILE, cert_pem, 0o644)
    return key_pem, cert_pem, leaf


def _usable_leaf(
    key_pem: bytes | None, cert_pem: bytes | None, ca: x509.Certificate, hosts: frozenset[str], now: datetime
) -> x509.Certificate | None:
    """The leaf on disk if it is this CA's, fits its key, names exactly `hosts` and has more than a third of
    its life."""
    leaf = _parsed_cert(cert_pem) if cert_pem is not None else None
    if leaf is None or key_pem is None:
        return None
    try:
        key = serialization.load_pem_private_key(key_pem, None)
        leaf.verify_directly_issued_by(ca)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _NOT_USABLE:
        return None
    named = {str(each.value) for each in names}
    fresh = leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc - LEAF_RENEWED_AT
    fits = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == leaf.public_key()
    return leaf if fresh and fits and named == hosts else None


def _hosts(listen: str, names: Sequence[str]) -> frozenset[str]:
    """What clients may dial. Only this host's own word for its name: a look-up in DNS may hang."""
    dialled = {parse_address(each, "listen", minimum_port=0).host for each in (listen, *names)}
    own = {"localhost", "127.0.0.1", "::1", socket.gethostname()}
    usable = (host for host in dialled | own if host and host.isascii() and not is_wildcard(host))
    return frozenset(str(_san(host).value) for host in usable)


def _san(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.lower())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _cert_pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _parsed_cert(pem: bytes) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None


def _parsed_key(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    key: PrivateKeyTypes | None
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FailedPreconditionError(
            Reason.CONFIG_INVALID,
            f"{path}: this is no private key of gpushare's CA.",
            what_to_do="Restore it from a backup; without it every client and agent must join again.",
        )
    return key


def _read(path: Path, *, secret: bool = False) -> bytes | None:
    """The file, or None where there is none. A secret that others could read is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        if secret and stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise FailedPreconditionError(
                Reason.CONFIG_INVALID,
                f"{path}: this private key can be read by other users.",
                what_to_do=f"Run `chmod 600 {path}`; if others may have read it, remove the directory and join anew.",
            )
        return file.read(65_536)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Durable and whole: a temporary file of the final mode, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.rename(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
