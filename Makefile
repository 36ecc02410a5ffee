# Common tasks. Each installs the system packages that it needs, and then runs `cargo xtask ...`.
# ARGS is passed on: `make up ARGS="--api-listen 127.0.0.1:4000"`, `make sdk-tests ARGS="--only python -- -k watch"`.

CARGO ?= cargo
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help up test check sdk-tests demo bench clean packages test-packages bench-packages toolchain

help: ## Print the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: packages ## Install missing packages, build, and run Hearth in the foreground
	@$(CARGO) xtask up $(ARGS)

test: test-packages ## Run all checks and all tests, including microVMs and official SDKs
	@$(CARGO) xtask test

check: packages ## Check formatting, lints, layers, language, generated code and licences
	@$(CARGO) xtask check

sdk-tests: test-packages ## Run the journeys with the official SDKs, and Schemathesis, on private servers
	@$(CARGO) xtask sdk-tests $(ARGS)

demo: test-packages ## Run the README's samples with the official SDKs on a private server
	@$(CARGO) xtask demo $(ARGS)

bench: test-packages bench-packages ## Run the benchmark; prints a table and JSON
	@$(CARGO) xtask bench $(ARGS)

clean: ## Delete builds, prepared templates and installed SDKs in this folder
	$(CARGO) clean
	rm -rf sdk-tests/.venv* sdk-tests/schema/.venv sdk-tests/js/node_modules sdk-tests/frameworks/computesdk/node_modules

packages: toolchain
	@scripts/packages.sh run build

test-packages: toolchain
	@scripts/packages.sh run build test

bench-packages: toolchain
	@scripts/packages.sh bench

toolchain:
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: install it with rustup, then try again." >&2; exit 1; }
