"""TLS contexts from certificate files: validated at startup, reloaded when the files change, kept if a reload fails."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime.errors import SettingsError
from runtime.settings import Settings

_log = logging.getLogger("warmstart.tls")

_WATCH_SECONDS = 5.0

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The certificate files, and how to load them.

    Args:
        certificate: TLS_CERT_FILE, the chain, leaf first; may contain the key too.
        key: TLS_KEY_FILE; None if the key is in ``certificate``.
        client_authorities: TLS_CLIENT_CA_FILE; with it, clients must send a certificate (mutual TLS).
    """

    certificate: Path
    key: Path | None = None
    client_authorities: Path | None = None

    def load(self) -> ssl.SSLContext:
        """Create a server context: TLS 1.2 or later, OpenSSL's default ciphers and order, HTTP/1.1 by ALPN.

        Raises:
            SettingsError: a file is unreadable or invalid; the message names the setting and file, never its contents.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # renegotiation costs the server more than the client
        context.set_alpn_protocols(["http/1.1"])
        key_setting, key = ("TLS_KEY_FILE", self.key) if self.key else ("TLS_CERT_FILE", self.certificate)
        _check_pem("TLS_CERT_FILE", self.certificate, b"CERTIFICATE", "certificate")
        _check_pem(key_setting, key, b"PRIVATE KEY", "private key")
        try:
            context.load_cert_chain(self.certificate, key, password=_refuse_password)
        except _Encrypted:
            raise SettingsError(f"{key_setting}: the key in {key} is encrypted; decrypt it") from None
        except ssl.SSLError as error:
            if "KEY_VALUES_MISMATCH" in str(error):
                problem = f"{key_setting}: the key in {key} is not that of the first certificate in {self.certificate}"
            else:
                problem = f"TLS_CERT_FILE: {self.certificate} or its key in {key} is damaged ({error.reason})"
            raise SettingsError(problem) from None
        if self.client_authorities is not None:
            _check_pem("TLS_CLIENT_CA_FILE", self.client_authorities, b"CERTIFICATE", "certificate")
            try:
                context.load_verify_locations(self.client_authorities)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"TLS_CLIENT_CA_FILE: {self.client_authorities} is damaged ({error.reason})"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def stamps(self) -> tuple[_Stamp | None, ...]:
        """Return modification time, inode and size of each file, to detect changes; None for a missing file."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.client_authorities))


class Tls:
    """Holds the TLS context for new connections and reloads it; open connections keep their context.

    Args:
        files: the certificate files.

    Raises:
        SettingsError: the files are unreadable or invalid, see ``TlsFiles.load``.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = files.stamps()  # before loading, so that changes meanwhile are noticed later
        self.context = files.load()

    def renew(self) -> bool:
        """Load the files again if they have changed; if that fails, log the error and keep the old context.

        Returns:
            Whether the context was replaced.
        """
        stamps = self._files.stamps()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self.context = self._files.load()
        except SettingsError as error:  # also happens between replacing the certificate and its key
            _log.warning("the renewed certificate cannot be used; the old one is still in use: %s", error)
            return False
        _log.info("the certificate was renewed")
        return True

    async def watch(self, seconds: float = _WATCH_SECONDS) -> NoReturn:
        """Call ``renew`` every few seconds until cancelled, in a thread because the files may be on a network disk."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.renew)


def tls_of(settings: Settings) -> Tls | None:
    """Load the TLS context that the settings describe; None for plain HTTP.

    Raises:
        SettingsError: the files are unreadable or invalid, see ``TlsFiles.load``.
    """
    if settings.tls_cert_file is None:
        return None
    return Tls(TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file))


class _Encrypted(Exception):
    pass


def _refuse_password() -> NoReturn:
    """Raise ``_Encrypted``; replaces OpenSSL's password prompt on the terminal, which would block the start."""
    raise _Encrypted


def _check_pem(setting: str, path: Path, marker: bytes, name: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    if marker + b"-----" not in content:
        raise SettingsError(f"{setting}: {path} contains no PEM {name}")


def _stamp(path: Path | None) -> _Stamp | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size) if status is not None else None
