#!/usr/bin/env bash
# Every static check. The Ansible tools work on a copy of the tree (what git would track) at
# the path that they insist on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/tools/report.sh
. tests/tools/report.sh

PATH=$PWD/.build/venv/bin:$PATH
tree=.build/lint/ansible_collections/holdfast/backup
# ansible-lint installs the collection into its home, where an old copy would hide this one: made anew each time.
export ANSIBLE_COLLECTIONS_PATH=$PWD/.build/lint ANSIBLE_HOME=$PWD/.build/lint/home

copy_tree() {
    rm -rf .build/lint
    mkdir -p $tree
    git ls-files -z --cached --others --exclude-standard |
        tar --create --null --files-from=- --ignore-failed-read --warning=no-failed-read |
        tar --extract --directory=$tree
    git -C $tree init --quiet
    git -C $tree add --all
}

# ansible-test downloads a bootstrap script for pip into $HOME/.ansible; a stand-in that uses
# Python's own ensurepip does the same without that host, in a home of its own.
sanity() {
    local home=$PWD/.build/home internal pip
    internal=$(echo .build/venv/lib/python3*/site-packages/ansible_test/_internal)
    pip=$(sed -n "s/^ *pip='\([0-9.]*\)'.*/\1/p" "$internal/python_requirements.py")
    mkdir -p "$home/.ansible/test/cache"
    printf 'import ensurepip\nensurepip.bootstrap(default_pip=True)\n' >"$home/.ansible/test/cache/get_pip_${pip//./_}.py"
    ln -sfn "$HOME/.config" "$home/.config"
    cd $tree
    # Of the system's own Pythons only: a version manager's shims exist, but need not run.
    PATH=${PATH%%:*}:/usr/local/bin:/usr/bin:/bin HOME=$home ansible-test sanity --venv --python default --color no
}

ansible_lint() { cd $tree && ansible-lint --offline --profile production --strict; }
changelog() { cd $tree && antsibull-changelog lint; }
documentation() {
    cd $tree && antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all --skip-rstcheck .
}

lab() {
    local unformatted
    unformatted=$(.build/bin/gofmt -l tests/lab)
    [ -z "$unformatted" ] || { echo "not formatted by gofmt: $unformatted" && false; }
    cd tests/lab && GOTOOLCHAIN=local ../../.build/bin/go vet ./...
}

shell_scripts() {
    command -v shellcheck >/dev/null || { echo "shellcheck is not installed: left out" && return; }
    git grep -lzE '^#!.*(bash|sh)$' | xargs -0 shellcheck --external-sources
}

# Nothing tracked may name a place on somebody's machine or the host of a package registry.
foreign_names() {
    ! git grep -nIE '/(work|home|Users)/[a-z]|/roo[t]/|pypi\.org|pythonhosted\.org|proxy\.golang\.org|deb\.debian\.org|registry\.npmjs'
}

copy_tree
check "ruff" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "gofmt, go vet" lab
check "shellcheck" shell_scripts
check "names" foreign_names
check "changelog" changelog
check "documentation" documentation
check "ansible-lint" ansible_lint
check "ansible-test sanity" sanity
finish
