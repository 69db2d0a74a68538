#!/usr/bin/env bash
# Builds the image without a Docker engine, runs its command as its user, asks it a question and stops it mid-stream.
# Needs root and: apt-get install buildah debootstrap. Everything it makes lies in ./image-build; of that, the base tree
# and pip's cache stay for the next time. Arguments go to `buildah bud`: loadtests/image_test.sh --build-arg DTYPES=float32
#   BASE_IMAGE=NAME     build on this image instead of a Debian tree made here
#   DEBIAN_MIRROR=URL   make that tree from here instead of from apt's own mirror
set -euo pipefail
cd "$(dirname "$0")/.."

image=localhost/warmstart:image-test
work=$PWD/image-build
export TMPDIR=$work/tmp # buildah keeps its scratch files and RUN's cache mounts there
server=

die() {
  echo "image-test: $*" >&2
  exit 1
}

store() { # buildah, on a storage of our own
  local command=$1
  shift
  buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$command" "$@"
}

clean() {
  if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi
  wait
  store rm --all >/dev/null 2>&1 || true
  # What is still mounted in there is a folder of the host.
  if grep -qF " $work/" /proc/self/mountinfo; then die "$work has mounts left in it: not removed"; fi
  rm -rf "$work/storage" "$work/run" "$work/base.tmp" "$work/pip.conf" "$work/folders" "$work/image.json"
}

[ "$(id -u)" = 0 ] || die "must be root"
command -v buildah >/dev/null || die "needs buildah: apt-get install buildah"
mkdir -p "$TMPDIR"
trap clean EXIT

base=${BASE_IMAGE:-}
if [ -z "$base" ]; then
  base=localhost/debian-python:image-test
  if [ ! -f "$work/base.tar" ]; then
    command -v debootstrap >/dev/null || die "needs debootstrap, or a BASE_IMAGE: apt-get install debootstrap"
    # shellcheck disable=SC2016 # apt's own variables
    mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
      'Codename: bookworm' 'Component: main' 'Created-By: Packages' | sed -n 1p)}
    [ -n "$mirror" ] || die "apt knows no mirror of Debian bookworm: set BASE_IMAGE or DEBIAN_MIRROR"
    echo "image-test: making a base tree"
    rm -rf "$work/base.tmp"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base.tmp" "$mirror" \
      >"$work/debootstrap.log" || die "debootstrap failed: see $work/debootstrap.log"
    tar -C "$work/base.tmp" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' \
      -cf "$work/base.tar.part" .
    mv "$work/base.tar.part" "$work/base.tar"
    rm -rf "$work/base.tmp"
  fi
  container=$(store from scratch)
  store add --quiet "$container" "$work/base.tar" / >/dev/null
  store commit --quiet --rm "$container" "$base" >/dev/null
fi

# The build gets this machine's pip settings, and sees the folders and files they name where it expects them.
python3 - "$work" <<'PYTHON'
import ast, configparser, subprocess, sys
from pathlib import Path

config = configparser.RawConfigParser()
folders = set()
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
# Last wins: the environment goes before the files.
for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
    key, _, value = line.partition("=")
    section, _, option = key.replace(":env:", "global").partition(".")
    value = ast.literal_eval(value)
    if not config.has_section(section):
        config.add_section(section)
    config[section][option] = value
    for word in value.split():
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # An index's pages link to the files beside it.
            folders.add(path.parent if option.endswith("index-url") else path)
root = Path(sys.argv[1])
with (root / "pip.conf").open("w") as file:
    config.write(file)
(root / "folders").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
PYTHON
mounts=()
while read -r folder; do mounts+=(--volume "$folder:$folder:ro"); done <"$work/folders"

echo "image-test: building"
began=$SECONDS
# Docker's format, because OCI's knows no health check.
store bud --isolation chroot --network host --format docker --tag "$image" --build-arg "BASE_IMAGE=$base" \
  --secret "id=pip.conf,src=$work/pip.conf" "${mounts[@]}" "$@" . >"$work/build.log" 2>&1 \
  || { tail -n 30 "$work/build.log" >&2; die "the build failed: see $work/build.log"; }
build_seconds=$((SECONDS - began))

store inspect --type image "$image" >"$work/image.json"
configured() { # a list or a string of the image's configuration, one item a line
  python3 -c '
import json, sys
value = json.load(open(sys.argv[1]))["Docker"]["config"]
for name in sys.argv[2].split("."):
    value = value.get(name) or []
print(*([value] if isinstance(value, str) else value), sep="\n")' "$work/image.json" "$1"
}
user=$(configured User)
mapfile -t command < <(configured Entrypoint | sed '/^$/d'; configured Cmd)
mapfile -t check < <(configured Healthcheck.Test)
[ "$(configured StopSignal)" = SIGTERM ] || die "the image's stop signal is not SIGTERM"
[ "${check[0]}" = CMD ] || die "the image's health check is not in exec form"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
drain=30
container=$(store from "$image")
root=$(store mount "$container")
inside=(run --isolation chroot --network host --user "$user" --env "PORT=$port")
touch "$work/tmp/began"

echo "image-test: running ${command[*]} as $user"
store "${inside[@]}" --env ALLOWED_IPS=127.0.0.1 --env "DRAIN_SECONDS=$drain" "$container" -- "${command[@]}" \
  2>"$work/server.log" &
job=$!
for _ in $(seq 100); do # buildah starts it through helpers of its own; those run as root and without the port
  for pid in $(pgrep --uid "${user%%:*}"); do
    if grep -qsxz "PORT=$port" "/proc/$pid/environ"; then server=$pid; fi
  done
  [ -z "$server" ] || break
  kill -0 "$job" 2>/dev/null || { cat "$work/server.log" >&2; die "the command ended at once"; }
  sleep 0.1
done
[ -n "$server" ] || die "no process of user $user"

python3 - "$port" "$server" <<'PYTHON' || { tail -n 20 "$work/server.log" >&2; die "it did not answer as it should"; }
import json, os, sys, time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

port, pid = map(int, sys.argv[1:])
http = build_opener(ProxyHandler({}))
origin = f"http://127.0.0.1:{port}"


def post(**payload):
    body = json.dumps({"messages": [{"role": "user", "content": "What is the capital of France?"}], **payload})
    return http.open(Request(f"{origin}/chat/completions", body.encode(), {"Content-Type": "application/json"}), timeout=60)


def status(name):
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return lines[name].split()


def age():  # seconds since the process was started
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


while True:
    try:
        http.open(f"{origin}/readyz", timeout=5)
        break
    except (URLError, ConnectionError):
        if age() > 120:
            sys.exit("not ready after two minutes")
        time.sleep(0.1)
ready = age()
answer = json.load(post(temperature=0, max_tokens=16))["choices"][0]["message"]["content"]
answered = age()
if "Paris" not in answer:
    sys.exit(f"it answered {answer!r}")
if "0" in status("Uid") + status("Gid") + status("Groups"):
    sys.exit("the process is root")
print(f"image-test: {answer!r}; start to ready {ready:.1f} s, to first answer {answered:.1f} s")
print(f"image-test: resident {int(status('VmRSS')[0]) >> 10} MiB, at most {int(status('VmHWM')[0]) >> 10} MiB")
PYTHON

store "${inside[@]}" "$container" -- "${check[@]:1}" || die "the health check fails on a healthy service"
if store "${inside[@]}" --env PORT=1 "$container" -- "${check[@]:1}" 2>/dev/null; then
  die "the health check passes without a service"
fi

# SIGTERM in the middle of a stream: the stream ends whole, then the process ends well.
python3 - "$port" "$server" "$drain" <<'PYTHON' || die "SIGTERM does not drain"
import json, os, signal, sys
from urllib.request import ProxyHandler, Request, build_opener

port, pid, drain = map(int, sys.argv[1:])
body = json.dumps({"prompt": "Once upon a time", "stream": True, "max_new_tokens": 64}).encode()
request = Request(f"http://127.0.0.1:{port}/generate", body, {"Content-Type": "application/json"})
with build_opener(ProxyHandler({})).open(request, timeout=drain) as events:
    events.readline()
    os.kill(pid, signal.SIGTERM)
    rest = events.read()
if rest.count(b"data:") < 60 or not rest.endswith(b"data: [DONE]\n\n"):
    sys.exit(f"the stream was cut: {rest[-200:]!r}")
PYTHON
began=$SECONDS
code=0
wait "$job" || code=$?
server=
[ "$code" = 0 ] || { tail -n 20 "$work/server.log" >&2; die "it ended with status $code"; }
[ $((SECONDS - began)) -le "$drain" ] || die "it took more than $drain s to stop"

# A read-only root is enough: it wrote nothing, and so kept no converted model that the image should have held.
written=$(find "$root" -xdev -newer "$work/tmp/began" -uid "${user%%:*}" -not -path "$root/tmp*")
[ -z "$written" ] || die "it wrote to $written"

size=$(du -xsm "$root" | cut -f 1)
echo "image-test: built in $build_seconds s, $size MiB; the stop was clean"
