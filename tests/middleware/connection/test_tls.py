"""middleware.connection.tls: which files make a context, what is said of those that do not, and renewal."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from middleware.connection.tls import Tls, TlsFiles, tls_of
from runtime.errors import SettingsError
from runtime.settings import Settings
from tests.support.fakes import until

CA = trustme.CA()


def issue(folder: Path, name: str = "cert") -> TlsFiles:
    """A new certificate and its key, in two files."""
    leaf = CA.issue_cert("localhost")
    files = TlsFiles(folder / f"{name}.pem", folder / f"{name}.key")
    assert files.key is not None
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    files.key.write_bytes(leaf.private_key_pem.bytes())
    return files


def renew(files: TlsFiles, folder: Path) -> None:
    """Put other ones in their place, as certbot does: a new file under the old name."""
    other = issue(folder, "other")
    assert files.key is not None
    assert other.key is not None
    os.replace(other.certificate, files.certificate)
    os.replace(other.key, files.key)


def test_good_files(tmp_path: Path) -> None:
    """TLS 1.2 or later, no client certificate asked for; with an authority, one is required."""
    files = issue(tmp_path)
    context = files.load()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    mutual = TlsFiles(files.certificate, files.key, tmp_path / "ca.pem").load()
    assert mutual.verify_mode == ssl.CERT_REQUIRED


def test_one_file(tmp_path: Path) -> None:
    """The key may stand in the certificate's file."""
    CA.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    TlsFiles(tmp_path / "both.pem").load()


def test_settings(tmp_path: Path) -> None:
    """Without TLS_CERT_FILE there is no TLS."""
    files = issue(tmp_path)
    assert tls_of(Settings.load()) is None
    assert tls_of(Settings.load(tls_cert_file=files.certificate, tls_key_file=files.key)) is not None


def encrypted(files: TlsFiles) -> None:
    """Put a password on the key."""
    assert files.key is not None
    key = load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret-canary"))
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no certificate", "TLS_CERT_FILE: .*cert.pem cannot be read: No such file"),
        ("no key", "TLS_KEY_FILE: .*cert.key cannot be read: No such file"),
        ("folder", "TLS_CERT_FILE: .*cert.pem cannot be read: Is a directory"),
        ("key left out", "TLS_CERT_FILE: .*cert.pem contains no PEM private key"),
        ("key as certificate", "TLS_CERT_FILE: .*cert.key contains no PEM certificate"),
        ("other's key", "TLS_KEY_FILE: the key in .*cert.key is not that of the first certificate"),
        ("damaged certificate", "TLS_CERT_FILE: .*damaged"),
        ("damaged key", "TLS_CERT_FILE: .*damaged"),
        ("encrypted key", "TLS_KEY_FILE: .*encrypted; decrypt it"),
        ("no authorities", "TLS_CLIENT_CA_FILE: .*cannot be read"),
        ("authorities without one", "TLS_CLIENT_CA_FILE: .*contains no PEM certificate"),
        ("damaged authorities", "TLS_CLIENT_CA_FILE: .*damaged"),
    ],
)
def test_bad_files(tmp_path: Path, fault: str, said: str) -> None:
    """Each fault is told with its setting at start, without a question on the terminal, and without any content."""
    files = issue(tmp_path)
    assert files.key is not None
    authorities = tmp_path / "ca.pem"
    damaged = b"-----BEGIN %b-----\nc2VjcmV0LWNhbmFyeQ==\n-----END %b-----\n"
    match fault:
        case "no certificate":
            files.certificate.unlink()
        case "no key":
            files.key.unlink()
        case "folder":
            files.certificate.unlink()
            files.certificate.mkdir()
        case "key left out":
            files = TlsFiles(files.certificate)
        case "key as certificate":
            files = TlsFiles(files.key, files.key)
        case "other's key":
            files.key.write_bytes(CA.issue_cert("localhost").private_key_pem.bytes())
        case "damaged certificate":
            files.certificate.write_bytes(damaged.replace(b"%b", b"CERTIFICATE"))
        case "damaged key":
            files.key.write_bytes(damaged.replace(b"%b", b"PRIVATE KEY"))
        case "encrypted key":
            encrypted(files)
        case "no authorities":
            files = TlsFiles(files.certificate, files.key, authorities)
        case "authorities without one":
            authorities.write_text("secret-canary")
            files = TlsFiles(files.certificate, files.key, authorities)
        case "damaged authorities":
            authorities.write_bytes(damaged.replace(b"%b", b"CERTIFICATE"))
            files = TlsFiles(files.certificate, files.key, authorities)
    with pytest.raises(SettingsError, match=said) as caught:
        files.load()
    assert "canary" not in str(caught.value)
    assert "c2Vj" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_forbidden_file(tmp_path: Path) -> None:
    """A key that this user may not read is named."""
    files = issue(tmp_path)
    assert files.key is not None
    files.key.chmod(0)
    with pytest.raises(SettingsError, match=r"TLS_KEY_FILE: .*Permission denied"):
        files.load()


def test_renewal(tmp_path: Path) -> None:
    """Changed files make a new context, unchanged ones do not."""
    files = issue(tmp_path)
    tls = Tls(files)
    first = tls.context
    assert not tls.renew()
    assert tls.context is first
    renew(files, tmp_path)
    assert tls.renew()
    assert tls.context is not first
    assert not tls.renew()


def test_broken_renewal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be used is logged once, and the old context stays, until what can be used comes."""
    files = issue(tmp_path)
    tls = Tls(files)
    first = tls.context
    good = files.certificate.read_bytes()
    for content in (None, b"", b"nonsense", CA.issue_cert("localhost").cert_chain_pems[0].bytes()):
        caplog.clear()
        files.certificate.unlink(missing_ok=True)
        if content is not None:
            files.certificate.write_bytes(content)
        assert not tls.renew()
        assert not tls.renew()
        assert tls.context is first
        assert len(caplog.records) == 1
        assert "the old one is still in use" in caplog.text
    files.certificate.write_bytes(good)
    assert tls.renew()


async def test_watch(tmp_path: Path) -> None:
    """Renewal needs nobody to ask for it."""
    files = issue(tmp_path)
    tls = Tls(files)
    first = tls.context
    task = asyncio.create_task(tls.watch(0.01))
    renew(files, tmp_path)
    await until(lambda: tls.context is not first)
    task.cancel()
