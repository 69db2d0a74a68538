"""Every token that ends a turn is found: in configurations, in GGUF keys, in vocabularies and in chat templates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from runtime.loading.checkpoint import read
from runtime.loading.serving_form import serving_form
from runtime.model.catalogue import parse_model_name
from runtime.model.end_tokens import end_ids, gguf_end_ids
from runtime.model.tokenizer import Tokenizer
from tests.support.models import CHATML, save_tiny_gguf

TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|close|>", "<|call|>", "<|end|>", "<|return|>", "<plain>")


def tokenizer(*texts: str, template: str | None = None, plain: tuple[str, ...] = ()) -> Tokenizer:
    """One whose added tokens are the given ones, numbered as in TOKENS; ``plain`` ones are not special."""
    backend = Backend(models.WordLevel({text: i for i, text in enumerate(TOKENS)}, unk_token="<s>"))
    backend.add_tokens([AddedToken(text, special=text not in plain, normalized=False) for text in [*texts, *plain]])
    return Tokenizer(backend, template, {"eos_token": "</s>"})


def test_configured_ids_and_the_tokenizers_own_count() -> None:
    """One id, several, or none."""
    found = [end_ids(configured, tokenizer("</s>")) for configured in (None, 7, [7, 5])]
    assert found == [(1,), (1, 7), (1, 5, 7)]


def test_tokens_that_end_turns_everywhere_count_by_their_text() -> None:
    """Whether they are control tokens or not."""
    assert end_ids(None, tokenizer("<|im_start|>", "<|im_end|>")) == (1, 3)
    assert end_ids(None, tokenizer(plain=("<|im_end|>",))) == (1, 3)


def test_the_tag_of_struck_text_is_no_end() -> None:
    """``</s>`` ends a text only as a control token; Gemma 3 has it for HTML."""
    backend = tokenizer(plain=("</s>",))
    backend.special_tokens = {}
    assert end_ids(None, backend) == ()
    backend = tokenizer("</s>")
    backend.special_tokens = {}
    assert end_ids(None, backend) == (1,)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML.replace("<|im_end|>", "<|close|>"), (1, 4)),
        ("{% for m in messages %}{{ m['content'] + '\n\n<|close|>' }}{% endfor %}", (1, 4)),
        ("{% for m in messages %}{{ m['content'] + '<plain>' }}{% endfor %}", (1,)),
        ("{% for m in messages %}{{ m['content'] }} next {% endfor %}", (1,)),
        ("{{ raise_exception('not for you') }}", (1,)),
        ("{{ messages[0]['content'] + 1 }}", (1,)),
        ("{{ broken", (1,)),
    ],
)
def test_what_a_template_writes_behind_an_answer_ends_it(template: str, expected: tuple[int, ...]) -> None:
    """A control token that follows at once; templates that cannot be asked add nothing."""
    assert end_ids(None, tokenizer("<|im_start|>", "<|close|>", template=template, plain=("<plain>",))) == expected


def test_a_harmony_message_goes_on_after_its_end() -> None:
    """An answer there has several messages, each with <|end|> behind it."""
    assert end_ids(6, tokenizer("<|call|>", "<|end|>", "<|return|>")) == (1, 5, 7)
    assert end_ids(6, tokenizer("<|end|>")) == (1, 6)


def test_keys_of_gguf_files_that_name_end_tokens() -> None:
    """Ends of text, turn and message, and the tokens around files; those around a gap end nothing."""
    names = ("bos", "eos", "eot", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
    metadata = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(names)}
    assert gguf_end_ids(metadata) == (1, 2, 3, 7, 8, 9)


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_both_engines_end_at_the_same_tokens(source: str, tiny_llama: Path, tmp_path: Path) -> None:
    """From the configuration or the keys, from the vocabulary, and from the tokenizer."""
    if source == "gguf":
        file = save_tiny_gguf(tmp_path / "m.gguf", tiny_llama, {"tokenizer.ggml.eot_token_id": 77})
    else:
        file = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
        (file / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    spec = parse_model_name(str(file))

    def quiet(stage: str, share: Any) -> None:
        """Nobody watches."""

    facts, _, _ = serving_form(spec, file, "float32", quiet)
    model, own = read(spec, file, "cpu", "float32", quiet)
    assert facts.end_ids == end_ids(model.generation_config.eos_token_id, own) == (2, 77)
