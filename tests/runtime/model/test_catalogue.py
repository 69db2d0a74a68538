"""Model names: told apart by their form, refused with advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import ModelUnavailable
from runtime.loading.model_files import on_disk
from runtime.model.catalogue import CATALOGUE, ModelSpec, parse_model_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m-instruct", CATALOGUE["smollm2-135m-instruct"]),
        ("DistilGPT2", CATALOGUE["distilgpt2"]),
        ("gpt2", ModelSpec("gpt2", "hub", "gpt2")),
        ("Qwen/Qwen2.5-0.5B", ModelSpec("Qwen/Qwen2.5-0.5B", "hub", "Qwen/Qwen2.5-0.5B")),
        ("owner/name@v1.0", ModelSpec("owner/name", "hub", "owner/name", "v1.0")),
        ("owner/name@refs/pr/3", ModelSpec("owner/name", "hub", "owner/name", "refs/pr/3")),
    ],
)
def test_names(name: str, expected: ModelSpec) -> None:
    """Catalogue names in any case, hub ids with and without a revision."""
    assert parse_model_name(name) == expected


@pytest.mark.parametrize(
    "name",
    ["", "a/b/c", "owner/na me", "-x", "owner/name@bad rev", "owner/name@../x", "/no/such/folder", "./none", "x.gguf"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    """Everything else is refused before anything is fetched."""
    with pytest.raises(ModelUnavailable):
        parse_model_name(name)


def test_folders_and_files(tmp_path: Path) -> None:
    """A folder with a config, a .gguf file, and a folder with just one .gguf file; an empty folder is refused."""
    model = tmp_path / "my-model"
    model.mkdir()
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        parse_model_name(str(model))
    (model / "w.gguf").touch()
    assert parse_model_name(str(model)) == ModelSpec("w", "gguf", str(model / "w.gguf"))
    assert parse_model_name(str(model / "w.gguf")) == ModelSpec("w", "gguf", str(model / "w.gguf"))
    (model / "config.json").touch()
    assert parse_model_name(str(model)) == ModelSpec("my-model", "folder", str(model))


def test_parts_of_a_split_file_name_one_model(tmp_path: Path) -> None:
    """Any of them, or their folder; a link to a file is not followed, since parts are found by their names."""
    files = [tmp_path / f"w-0000{number}-of-00002.gguf" for number in (1, 2)]
    for file in files:
        file.touch()
    for path in (*files, tmp_path):
        assert parse_model_name(str(path)) == ModelSpec("w", "gguf", str(files[0]))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "l-00001-of-00002.gguf").symlink_to(files[0])
    assert parse_model_name(str(tmp_path / "links")).location.endswith("links/l-00001-of-00002.gguf")


def test_no_message_shows_a_path(tmp_path: Path) -> None:
    """Names of files may be shown, where they lie may not."""
    for name in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelUnavailable) as caught:
            parse_model_name(str(name))
        assert str(tmp_path) not in caught.value.message


def test_on_disk() -> None:
    """The embedded model is on disk, a hub model that was never fetched is not."""
    assert on_disk(CATALOGUE["smollm2-135m-instruct"])
    assert not on_disk(ModelSpec("x", "hub", "no-such-owner/no-such-model"))
