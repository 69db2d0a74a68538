"""TLS contexts from files: checked at start, made anew when the files change, never worse than before."""

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
    """The files of one TLS setting.

    Args:
        certificate: TLS_CERT_FILE, the chain, leaf first; may hold the key too.
        key: TLS_KEY_FILE.
        client_authorities: TLS_CLIENT_CA_FILE; with it, clients must show a certificate (mutual TLS).
    """

    certificate: Path
    key: Path | None = None
    client_authorities: Path | None = None

    def load(self) -> ssl.SSLContext:
        """A server's context: TLS 1.2 or later, OpenSSL's default ciphers in its order, HTTP/1.1 by ALPN.

        Raises:
            SettingsError: names the setting and the file, never anything that is in it.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # which costs the server more than the client
        context.set_alpn_protocols(["http/1.1"])
        key_setting, key = ("TLS_KEY_FILE", self.key) if self.key else ("TLS_CERT_FILE", self.certificate)
        _hold("TLS_CERT_FILE", self.certificate, b"CERTIFICATE", "certificate")
        _hold(key_setting, key, b"PRIVATE KEY", "private key")
        try:
            context.load_cert_chain(self.certificate, key, password=_ask)
        except _Encrypted:
            raise SettingsError(f"{key_setting}: the key in {key} is encrypted; decrypt it") from None
        except ssl.SSLError as error:
            if "KEY_VALUES_MISMATCH" in str(error):
                problem = f"{key_setting}: the key in {key} is not that of the first certificate in {self.certificate}"
            else:
                problem = f"TLS_CERT_FILE: {self.certificate} or its key in {key} is damaged ({error.reason})"
            raise SettingsError(problem) from None
        if self.client_authorities is not None:
            _hold("TLS_CLIENT_CA_FILE", self.client_authorities, b"CERTIFICATE", "certificate")
            try:
                context.load_verify_locations(self.client_authorities)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"TLS_CLIENT_CA_FILE: {self.client_authorities} is damaged ({error.reason})"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def stamps(self) -> tuple[_Stamp | None, ...]:
        """What tells the files from renewed ones."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.client_authorities))


class Tls:
    """The context for the next connection. Open connections keep the one they began with.

    Args:
        files: where it comes from.

    Raises:
        SettingsError: see ``TlsFiles.load``.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = files.stamps()  # before loading: what changes meanwhile is then seen as changed
        self.context = files.load()

    def renew(self) -> bool:
        """Load the files again if they have changed; what cannot be used is logged, and the old context kept.

        Returns:
            Whether there is a new context.
        """
        stamps = self._files.stamps()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self.context = self._files.load()
        except SettingsError as error:  # also between the renewal of the certificate and that of its key
            _log.warning("the renewed certificate cannot be used, the old one stays: %s", error)
            return False
        _log.info("the certificate was renewed")
        return True

    async def watch(self, seconds: float = _WATCH_SECONDS) -> NoReturn:
        """Renew for ever, looking every few seconds. In a thread, because files may be far away."""
        while True:
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.renew)


def tls_of(settings: Settings) -> Tls | None:
    """What the settings say; None for plain HTTP.

    Raises:
        SettingsError: see ``TlsFiles.load``.
    """
    if settings.tls_cert_file is None:
        return None
    return Tls(TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file))


class _Encrypted(Exception):
    pass


def _ask() -> NoReturn:
    """Instead of OpenSSL's question on the terminal, which would hold up the start for ever."""
    raise _Encrypted


def _hold(setting: str, path: Path, what: bytes, name: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    if what + b"-----" not in content:
        raise SettingsError(f"{setting}: {path} holds no PEM {name}")


def _stamp(path: Path | None) -> _Stamp | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size) if status is not None else None
