"""loadtests.containers.pip_settings: what builds learn of this machine's settings of pip."""

from __future__ import annotations

import configparser
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from loadtests.containers import pip_settings
from loadtests.containers.pip_settings import pip_conf, translated


def test_local_folders_become_urls(tmp_path: Path) -> None:
    """An index's URL names the folder beside which its files are; other options and the certificates stay."""
    index, wheels, pins = tmp_path / "pypi/simple", tmp_path / "wheels", tmp_path / "pins/constraints.txt"
    for folder in (index, wheels, pins.parent):
        folder.mkdir(parents=True)
    pins.write_text("")
    settings = {
        "global.cert": str(pins),
        "global.extra-index-url": f"file://{index} http://elsewhere/simple",
        "global.find-links": str(wheels),
        "install.constraint": str(pins),
        "global.timeout": "60",
    }
    text, folders = translated(settings, "http://host")
    found = configparser.RawConfigParser()
    found.read_string(text)
    assert dict(found["global"]) == {
        "cert": str(pins),
        "extra-index-url": f"http://host{index}/ http://elsewhere/simple",
        "find-links": f"http://host{wheels}/",
        "timeout": "60",
    }
    assert dict(found["install"]) == {"constraint": f"http://host{pins}"}
    assert folders == {index.parent, wheels, pins.parent}


def test_only_named_folders_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build gets what the settings name, and nothing beside it; afterwards the file is gone."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a.whl").write_text("wheel")
    (tmp_path / "secret").write_text("secret")
    (wheels / "out").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(pip_settings, "listed", lambda: {"global.find-links": str(wheels)})
    file = tmp_path / "pip.conf"
    with pip_conf(file):
        config = configparser.RawConfigParser()
        config.read(file)
        url = config["global"]["find-links"]
        with urllib.request.urlopen(f"{url}a.whl") as response:
            assert response.read() == b"wheel"
        for path in ("../secret", "%2e%2e/secret", "out"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{url}{path}")
    assert not file.exists()
