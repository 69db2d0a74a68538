"""Small vocabularies in GGUF files, and llama.cpp's tokens of 43 texts for each of them and for two real ones.

``python -m tests.support.gguf_tokens gemma-3-270m-q4_k_m.gguf`` records the tokens again in ``gguf_tokens.json``; it
needs ``llama-cpp-python`` (0.3.36 was used). That file also has the vocabularies, because training them again might
give different ones.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.model.gguf_pretokenizers import PRETOKENIZERS
from tests.support.models import add_key

RECORDED = Path(__file__).with_suffix(".json")

TEXTS = (
    "",
    " ",
    "Hello world",
    " Hello  world  ",
    "1. First\n2. Second\n\n10. Tenth\n   - nested 5 apples\n",
    "\n\n1. Mix 250 g of flour.\n\n2. Bake for 35 minutes at 180\u00b0C.",
    "* one\n* two\n\t* three\n",
    "| name | price |\n|------|------:|\n| pear | 1.25 |\n| fig  | 12.50 |\n",
    "a\tb\t\tc\t\t\td",
    "def f(x):\n    if x >= 10:\n        return x**2  # square\n    return {'k': [x, -x]}\n",
    "for (int i = 0; i != n; ++i) { sum += a[i]; } // total\n",
    '<div class="x">&nbsp;<b>bold</b></div>',
    "SELECT * FROM t WHERE a<=3 AND b LIKE '%x%';",
    "0 12 345 6789 12345 678901 2345678 90123456",
    "3.14159 1,234,567.89 -42 1e-9 0xFF 2024-02-29 12:34:56",
    "I'm you're he's we'll they've I'd don't DON'T IT'S WE'LL",
    "na\u00efve fa\u00e7ade \u00c9cole \u00fcber GR\u00d6SSE Stra\u00dfe \u0152uvre",
    "e\u0301 re\u0301sume\u0301 a\u0300 n\u0303",
    "\u00e9 r\u00e9sum\u00e9 \u00e0 \u00f1",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u662f2024\u5e745\u670812\u65e5\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca\u3068\u6f22\u5b57",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 123\uac1c",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c "
    "\u0661\u0662\u0663 \u0633\u0646\u0629",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 55",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u041c\u0418\u0420! \u042d\u0442\u043e \u0442\u0435\u0441\u0442 \u21167.",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u039f\u03a3\u039c\u0395",
    "\U0001f680 launch \U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f3f3\ufe0f\u200d\U0001f308 \u2764\ufe0f",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd ok",
    "x\u00b2 + y\u00b3 = \u00bd \u2167 \u2211\u221e \u00b1 \u20ac5 \u00a37 $9",
    "trailing blanks   ",
    "trailing newline \n",
    "   leading blanks",
    "line one\r\nline two\r\n\r\n  line four\r\n",
    "blank lines\n\n\n\nand \n \n  \n   more",
    "\u00a0no\u00a0break\u00a0 \u2003wide\u2028line\u3000full",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b </s> <s> <unk> <tool_call>{}</tool_call>",
    "[unused9] <0x41> \u2581 \u2581\u2581x zyzzyva",
    "path/to/file.txt C:\\dir\\x.exe user@example.com https://example.org/a?b=c&d=1#e",
    "word-word_word.word camelCase HTTPServer snake_case ALLCAPS \u201cquoted\u201d \u2018it\u2019 \u2014 dash\u2026",
    "zyzzyva",
    "'tis 'twas Ankara'da 'llama 'tis",
)

_TYPES = {"normal": 1, "unknown": 2, "control": 3, "user": 4, "unused": 5, "byte": 6}


def recorded() -> Any:
    """Return the vocabularies and llama.cpp's tokens: the ids of each text, by case."""
    data = json.loads(RECORDED.read_text())
    distinct = data["distinct"]
    return data | {
        "tokens": {
            case: [distinct[text][number] for text, number in enumerate(numbers)]
            for case, numbers in data["tokens"].items()
        }
    }


def cases(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, GGUF metadata) of every vocabulary under test."""
    for pre in ["", "default", *PRETOKENIZERS]:
        raw = pre and not getattr(PRETOKENIZERS.get(pre), "byte_level", True)
        yield f"gpt2 {pre}", _pairs(data["pieces" if raw else "pairs"], "gpt2", pre)
    yield "gemma4", _pairs(data["pieces"], "gemma4", "")
    yield (
        "gpt2 with both ends",
        _pairs(data["pairs"], "gpt2", "smollm")
        | {
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": True,
        },
    )
    for name, changes in {
        "llama": {},
        "llama without prefix": {"add_space_prefix": False, "add_bos_token": False},
        "llama with both ends": {"add_bos_token": True, "add_eos_token": True},
    }.items():
        yield name, _scored(data["pieces"], "llama", changes)
    charsmap = np.frombuffer(base64.b64decode(data["charsmap"]), np.uint8)
    for name, changes in {
        "t5": {"add_space_prefix": True},
        "t5 with one space": {"remove_extra_whitespaces": True, "precompiled_charsmap": charsmap},
    }.items():
        yield name, _scored(data["unigram"], "t5", changes)


def _base(tokens: list[list[Any]], model: str) -> dict[str, Any]:
    texts = [token[0] for token in tokens]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": np.array([_TYPES[token[1]] for token in tokens], np.int32),
        "tokenizer.ggml.bos_token_id": texts.index("<s>"),
        "tokenizer.ggml.eos_token_id": texts.index("</s>"),
        "tokenizer.ggml.unknown_token_id": texts.index("<unk>"),
    }


def _pairs(vocabulary: Mapping[str, Any], model: str, pre: str) -> dict[str, Any]:
    metadata = _base(vocabulary["tokens"], model) | {"tokenizer.ggml.merges": vocabulary["merges"]}
    return metadata | ({"tokenizer.ggml.pre": pre} if pre else {})


def _scored(vocabulary: Mapping[str, Any], model: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    scores = np.array([token[2] for token in vocabulary["tokens"]], np.float32)
    metadata = _base(vocabulary["tokens"], model) | {"tokenizer.ggml.scores": scores}
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def write_vocabulary(file: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a GGUF file with only a vocabulary and the keys that llama.cpp requires."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    needed = {"context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}
    for key, number in (needed | {"attention.head_count": 1}).items():
        writer.add_uint32(f"llama.{key}", number)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value in metadata.items():
        if key == "tokenizer.ggml.scores":
            writer.add_token_scores([float(score) for score in value])
        elif key == "tokenizer.ggml.token_type":
            writer.add_token_types([int(kind) for kind in value])
        elif key == "tokenizer.ggml.precompiled_charsmap":
            writer.add_precompiled_charsmap(value.tobytes())
        elif key != "general.architecture":
            add_key(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _record(gemma: Path) -> None:
    from llama_cpp import Llama

    from runtime.loading.model_files import locate
    from runtime.model.catalogue import CATALOGUE

    data = json.loads(RECORDED.read_text())
    distinct: list[list[list[int]]] = [[] for _ in TEXTS]
    tokens: dict[str, list[int]] = {}

    def record(name: str, file: Path | None) -> None:
        model = Llama(str(file), vocab_only=True, verbose=False)
        tokens[name] = []
        for text, known in zip(TEXTS, distinct, strict=True):
            ids = model.tokenize(text.encode(), add_bos=True, special=True)
            if ids not in known:
                known.append(ids)
            tokens[name].append(known.index(ids))

    with tempfile.TemporaryDirectory() as folder:
        for name, metadata in cases(data):
            record(name, write_vocabulary(Path(folder) / "vocabulary.gguf", metadata))
    record("SmolLM2", locate(CATALOGUE["smollm2-135m-instruct"]))
    record("Gemma 3", gemma)
    parts = {key: data[key] for key in ("pairs", "pieces", "unigram", "charsmap")}
    RECORDED.write_text(json.dumps(parts | {"distinct": distinct, "tokens": tokens}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    _record(Path(sys.argv[1]))
