"""What a checkpoint's files say of its chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ModelUnavailable
from runtime.loading.checkpoint import read
from runtime.loading.checkpoint_tokenizer import wrap
from runtime.model.catalogue import ModelSpec
from tests.support.models import train_tokenizer


@pytest.mark.parametrize(
    ("templates", "chosen"),
    [
        ("one", "one"),
        ({"tool_use": "two", "default": "one"}, "one"),
        ([{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}], "one"),
        ({"tool_use": "two", "rag": "three"}, None),
        ({}, None),
        ("", None),
        (None, None),
    ],
)
def test_of_several_templates_the_default_is_taken(
    templates: Any, chosen: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does; without a default, which it refuses, chats are written plainly and the log says so."""
    tokenizer = train_tokenizer()
    tokenizer.chat_template = (
        {t["name"]: t["template"] for t in templates} if isinstance(templates, list) else templates
    )
    assert wrap(tokenizer).chat_template == chosen
    assert ("no chat template is named default" in caplog.text) == (isinstance(templates, dict) and chosen is None)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ({"chat_template.json": '{"chat_template": "processor"}'}, "processor"),
        ({"chat_template.json": '{"chat_template": {"default": "processor"}}'}, "processor"),
        ({"chat_template.json": '{"chat_template": "processor"}', "chat_template.jinja": "own"}, "own"),
        ({"additional_chat_templates/tool_use.jinja": "tools"}, None),
        ({"additional_chat_templates/tool_use.jinja": "tools", "chat_template.jinja": "own"}, "own"),
    ],
)
def test_templates_in_files_of_their_own(
    files: dict[str, str], chosen: str | None, tiny_gpt2: Path, tmp_path: Path
) -> None:
    """Of the tokenizer, and of a multimodal model's processor in the older layout."""
    assert load(tiny_gpt2, tmp_path, files).chat_template == chosen


@pytest.mark.parametrize("content", ["{}", '{"chat_template": 7}', "not JSON"])
def test_a_damaged_template_file_is_said(content: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    """Like any other file that cannot be read."""
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load(tiny_gpt2, tmp_path, {"chat_template.json": content})


def load(model: Path, folder: Path, files: dict[str, str]) -> Any:
    """The tokenizer of a copy of a model with other files beside it."""
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    spec = ModelSpec("local", "folder", str(folder))
    return read(spec, folder, "cpu", "float32", lambda stage, fraction: None)[1]


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_a_configuration_with_impossible_sizes_is_refused(kind: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    """Before anything is allocated, of a model for the fast engine and of one for the reference engine."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_gpt2, folder)
    config = json.loads((folder / "config.json").read_bytes())
    config |= {"model_type": kind, "n_layer": 2_000_000_000}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="n_layer is 2000000000, which is above the limit of 10000"):
        read(ModelSpec("tiny", "folder", str(folder)), folder, "cpu", "float32", lambda stage, share: None)
