"""deploy/nginx.conf: uploads of files through a real nginx with the shipped configuration."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from handlers.cli.remote import Remote
from runtime.errors import ServiceError
from tests.attacks.nginx import running_nginx
from tests.support.batches import storing
from tests.support.fakes import serving, until
from tests.support.nginx import needs_nginx

MIB = 1 << 20


@needs_nginx
async def test_uploads(tmp_path: Path) -> None:
    """A file above the limit of other bodies arrives; one above the service's limit gets the service's own error. What
    arrives is passed on at once, and nginx itself keeps none of it.
    """
    folder, proxy = tmp_path / "files", tmp_path / "nginx"
    proxy.mkdir()
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(os.urandom(5 * MIB))
    large.write_bytes(bytes(9 * MIB))
    limits = {"files_max_bytes": 8 * MIB, "trusted_proxies": "127.0.0.1"}
    async with serving(storing(folder, files_max_bytes=8 * MIB), files_dir=folder, **limits) as url:
        with running_nginx(proxy, urlsplit(url).port or 0) as nginx:
            remote = Remote(f"http://127.0.0.1:{nginx.port}")
            file = await asyncio.to_thread(remote.upload, "/v1/files", {"purpose": "batch"}, small)
            assert file["bytes"] == 5 * MIB
            target = tmp_path / "target"
            await asyncio.to_thread(remote.download, f"/v1/files/{file['id']}/content", target)
            assert target.read_bytes() == small.read_bytes()
            with pytest.raises(ServiceError, match="FILES_MAX_BYTES"):
                await asyncio.to_thread(remote.upload, "/v1/files", {"purpose": "batch"}, large)
            with pytest.raises((ServiceError, ConnectionError), match="status 413"):
                await asyncio.to_thread(remote.upload, "/v1/batches", {}, small)
            with socket.create_connection(("127.0.0.1", nginx.port)) as client:
                head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {4 * MIB}\r\n"
                form = "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
                field = 'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
                client.sendall((head + form + field).encode() + bytes(2 * MIB))
                await until(lambda: sum(path.stat().st_size for path in (folder / "staged").iterdir()) >= MIB)
                assert not any(path.stat().st_size for path in (proxy / "client_body").rglob("*") if path.is_file())
