# shellcheck shell=bash
# Sourced by lint.sh and test.sh: runs named checks one after another, goes on after a
# failure, and ends with a table and an exit status that tells.

report=()
passed=0
failed=0

check() { # check <name> <command...>
    local name=$1 started=$SECONDS status verdict=passed
    shift
    printf '\n\033[1m== %s\033[0m\n' "$name"
    set +e
    # A subshell of its own: in a condition, `set -e` would not hold inside the functions.
    (
        set -euo pipefail
        "$@"
    )
    status=$?
    set -e
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1)) verdict="FAILED ($status)"
    fi
    report+=("$(printf '  %-28s %5d s  %s' "$name" $((SECONDS - started)) "$verdict")")
}

finish() {
    printf '\n\033[1m== Summary\033[0m\n'
    printf '%s\n' "${report[@]}"
    printf 'checks: %d passed, %d failed\n' $passed $failed
    [ $failed -eq 0 ]
}
