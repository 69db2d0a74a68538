"""Makes images from Debian's packages, under the names of those that the Dockerfiles and the compose file use.

With ``REAL_IMAGES=1`` the engine takes the real ones from where it gets images.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from loadtests.containers.engine import WORK, ContainerFault, DockerEngine, run

PYTHON = "python:3.11-slim-bookworm"
_RELEASE = "bookworm"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_SERVERS = """\
FROM {python} AS servers
RUN apt-get update && apt-get install -y --no-install-recommends nginx-light nats-server prometheus wget \\
    && install -d -o 65534 -g 65534 /prometheus

FROM servers AS nginx
CMD ["nginx", "-g", "daemon off;"]

FROM servers AS nats
ENTRYPOINT ["nats-server"]

FROM servers AS prometheus
ENTRYPOINT ["prometheus"]
"""


def make_stand_ins(engine: DockerEngine, images: set[str]) -> set[str]:
    """Make the images that are not built from the repository.

    Args:
        engine: the engine.
        images: their names with tags; those that this machine has no packages for are left out.

    Returns:
        The names that were left out.
    """
    if os.environ.get("REAL_IMAGES"):
        return set()
    _import_base(engine)
    left_out = set()
    for image in sorted(images):
        target = image.partition(":")[0].rpartition("/")[2]
        if f" AS {target}\n" not in _SERVERS:
            left_out.add(image)
            continue
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "Dockerfile"
            recipe.write_text(_SERVERS.format(python=PYTHON))
            engine.docker("build", "--network", "host", "-t", image, "--target", target, "-f", str(recipe), folder)
    return left_out


def _import_base(engine: DockerEngine) -> None:
    """Make the image that all others stand on: a minimal Debian with Python, and this machine's certificates."""
    archive = WORK / "base.tar"
    if not archive.exists():
        _make_tree(archive)
    if not engine.docker("images", "-q", PYTHON).strip():
        engine.docker("import", str(archive), PYTHON)


def _make_tree(archive: Path) -> None:
    """Write a base tree as a tar archive."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {_RELEASE}", "Component: main"]
    mirrors = run([*targets, "Created-By: Packages"]).split()
    mirror = os.environ.get("DEBIAN_MIRROR") or next(iter(mirrors), None)
    if mirror is None:
        raise ContainerFault(f"apt knows no mirror of Debian {_RELEASE}: set DEBIAN_MIRROR, or REAL_IMAGES=1")
    tree, part = WORK / "base", archive.with_suffix(".part")
    shutil.rmtree(tree, ignore_errors=True)
    include = "--include=python3,python3-venv,ca-certificates"
    run(["debootstrap", "--variant=minbase", include, _RELEASE, str(tree), mirror], seconds=1800)
    shutil.copy(_CERTIFICATES, tree / _CERTIFICATES.relative_to("/"))
    left_out = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
    run(["tar", "-C", str(tree), *left_out, "-cf", str(part), "."])
    part.rename(archive)
    shutil.rmtree(tree)
