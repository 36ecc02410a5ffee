# The common chores. Each is a few words for `cargo xtask ...`, preceded by the system packages that it needs.
# ARGS is handed on: `make up ARGS="--api-listen 127.0.0.1:4000"`, `make sdk-tests ARGS="--only python -- -k watch"`.

CARGO ?= cargo
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help up test check sdk-tests demo bench clean packages test-packages bench-packages toolchain

help: ## Show the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: packages ## Install what is missing, build, prepare, and serve in the foreground
	@$(CARGO) xtask up $(ARGS)

test: test-packages ## All checks and all tests, microVMs and official SDKs included
	@$(CARGO) xtask test

check: packages ## Formatting, lints, layers, generated code, licences
	@$(CARGO) xtask check

sdk-tests: test-packages ## The journeys with the official SDKs, and Schemathesis, on a private server
	@$(CARGO) xtask sdk-tests $(ARGS)

demo: test-packages ## The README's samples with the official SDKs on a private server
	@$(CARGO) xtask demo $(ARGS)

bench: test-packages bench-packages ## Measure, as a table and as JSON
	@$(CARGO) xtask bench $(ARGS)

clean: ## Remove what was built, prepared and installed below this folder
	$(CARGO) clean
	rm -rf sdk-tests/.venv* sdk-tests/schema/.venv sdk-tests/js/node_modules sdk-tests/frameworks/computesdk/node_modules

packages: toolchain
	@scripts/packages.sh run build

test-packages: toolchain
	@scripts/packages.sh run build test

bench-packages: toolchain
	@scripts/packages.sh bench

toolchain:
	@command -v $(CARGO) >/dev/null || { echo "There is no Rust here: install it with rustup, then try again." >&2; exit 1; }
