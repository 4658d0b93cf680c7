# `make test` and `make demo` do all their own set-up. Everything that is built lies in .build/.
# The clone may lie in any directory whose path has no space.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
export PYTHON

GO := GOTOOLCHAIN=local CGO_ENABLED=0 ../../.build/bin/go
LAB_SOURCES := tests/lab/go.mod tests/lab/go.sum $(wildcard tests/lab/*.go)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-7s %s\n' "$$name" "$$what"; done

setup: ## install and build what the other targets need (they call it themselves)
setup: .build/lab .build/govc vddk

demo: setup ## back up, change, destroy and restore a virtual machine, with proof (ACCESS=vddk: by the stand-in)
	@.build/venv/bin/python tests/lab/demo/demo.py

test: setup ## run every test
	@tests/tools/test.sh

soak: setup ## live random lives of repositories for hours, with kills and damage
	@.build/venv/bin/python tests/tools/soak.py

lint: setup ## run every static check
	@tests/tools/lint.sh

bench: setup ## measure against peers and limits: a table and a JSON file
	@tests/benchmarks/run

clean: ## remove all that was built
	rm -rf .build

environment:
	@tests/tools/setup.sh

.build/lab: $(LAB_SOURCES) | environment
	cd tests/lab && $(GO) build -buildvcs=false -o ../../.build/lab .

.build/govc: tests/lab/govc/main.go tests/lab/go.mod tests/lab/go.sum | environment
	cd tests/lab && $(GO) build -buildvcs=false -o ../../.build/govc ./govc

vddk: environment
	@$(MAKE) -C tests/lab/vddk

.PHONY: help setup demo test soak lint bench clean environment vddk
