# shellcheck shell=bash
# Makes or mends the virtual environment of this checkout. For the scripts beside this file:
#
#     source ".../setup.sh"     # sets $root and $python, installs nothing
#     other_torch 2.11.0        # if not the pinned torch: an environment outside the checkout
#     setup demo                # or: setup dev, which includes demo
#     "$python" -m ...

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

place() {
    venv="$1"
    pins="$2"                       # the versions to install: a file for pip's -c
    python="$venv/bin/python"
    stamp="$venv/fxdp-installed"    # checksum and extra of the last installation that finished
    begun="$venv/fxdp-installing"   # there while one runs, so left behind by one that was killed
}
place "$root/.venv" "$root/constraints.txt"

# Has setup use another release of torch. Its environment, some gigabytes with CUDA libraries, is
# below $FXDP_ENVIRONMENTS, or else where the user keeps caches; the last checkout that used it is
# installed there. setuptools is not pinned, for releases of torch want different ones; nothing
# else that the tests need goes by torch's release.
other_torch() {
    local release="$1" folder
    if [[ ! "$release" =~ ^[0-9]+(\.[0-9]+)+([a-z0-9.+]*)$ ]]; then
        echo "a release of torch is wanted, like 2.11.0, not '$release'" >&2
        return 2
    fi
    folder="${FXDP_ENVIRONMENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/fxdp}"
    mkdir -p -- "$folder" || return
    folder="$(CDPATH='' cd -- "$folder" && pwd -P)" || return
    place "$folder/torch-$release" "$folder/torch-$release.txt"
    {
        sed -e '/^torch==/d' -e '/^setuptools==/d' -- "$root/constraints.txt"
        printf '%s\n' "torch==$release" "setuptools>=77.0.3"
    } >"$pins"
}

# Prints the path of a Python that can make environments. It asks each for the interpreter that
# it rests on: `python3` may be the one in a .venv that is about to be removed.
find_python() {
    local name
    for name in python3 python python3.11 python3.12 python3.13 python3.14; do
        "$name" - 2>/dev/null <<'PY' && return
import ensurepip, sys, venv
if sys.version_info < (3, 11):
    raise SystemExit(1)
print(getattr(sys, "_base_executable", None) or sys.executable)
PY
    done
    echo "fxdp needs Python 3.11 or newer, with venv: none of python3, python, python3.11 to" \
        "python3.14 on PATH is one" >&2
    return 1
}

usable() {
    [[ ! -e "$begun" ]] && "$python" - 2>/dev/null <<'PY'
import sys, pip
raise SystemExit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)
PY
}

# torch goes first and alone decides its build: another package's looser range for it could
# bring a newer one, with gigabytes of CUDA libraries. setuptools is there before fxdp, so that
# the build uses the pinned one. Python compiles what is imported; pip would compile all there is.
install() {
    local extras="$1"
    (
        cd -- "$root" &&
            "$python" -m pip install -q --no-compile -c "$pins" torch setuptools wheel &&
            "$python" -m pip install -q --no-compile -c "$pins" --no-build-isolation \
                -e ".[$extras]"
    )
}

setup() {
    local extra="$1" sum found="" extras=demo base
    sum="$({ echo "$root"; cat -- "$root/pyproject.toml" "$pins"; } | cksum)"
    if ! usable; then
        base="$(find_python)" || return
        echo "making $venv with $base" >&2
        rm -rf -- "$venv"
        "$base" -m venv "$venv" || return
    fi
    [[ -e "$stamp" ]] && found="$(cat -- "$stamp")"
    [[ "$found" == "$sum dev" || "$found" == "$sum $extra" ]] && return
    # A demo run does not take the developer's tools away from the bookkeeping.
    [[ "$found" == *" dev" ]] && extra=dev
    [[ "$extra" == dev ]] && extras=dev,demo
    echo "installing fxdp[$extras] and what it needs: minutes, the first time" >&2
    rm -f -- "$stamp"
    touch -- "$begun"
    install "$extras" || { rm -f -- "$begun"; return 1; }
    echo "$sum $extra" >"$stamp"
    rm -f -- "$begun"
}
