# A thin layer over the plain tools; after `make setup` they work by themselves: eval "$(make env)"
STACK ?= dev
NUMINST ?=
export VHOST_BACKEND SPDK_SOURCE
ARGS ?=
ENV = environment=$$(bash setup/env) && eval "$$environment"

.PHONY: help setup up preview status check down test bench env
help:
	@echo 'make up [STACK=dev] [NUMINST=N]   machine ready, stack up, status'
	@echo '   [VHOST_BACKEND=spdk] [SPDK_SOURCE=DIR]   for this run only'
	@echo 'make preview [STACK=dev] [ARGS="--save FILE | --against FILE"]   what up would do, held against the policies'
	@echo 'make status | down                [STACK=dev]'
	@echo 'make check                        is what runs what the program says? make up mends what is not'
	@echo 'make test [ARGS="-m unit"]        all checks and tests'
	@echo 'make bench [ARGS="bringup grow"]   figures beside their goals, and the timeline of a bring-up'
	@echo 'eval "$$(make env [STACK=dev])"    the environment for pulumi, kubectl and pytest'
setup:
	@bash setup/setup
up: setup
	@$(ENV) && python -m operate.up '$(STACK)' --numinst '$(NUMINST)'
preview:
	@bash setup/setup --tools >&2
	@$(ENV) && python -m operate.preview '$(STACK)' $(ARGS)
status:
	@$(ENV) && PULUMI_STACK='$(STACK)' python -m operate.status
check:
	@$(ENV) && PULUMI_STACK='$(STACK)' python -m operate.check
down:
	@$(ENV) && python3 -m operate.down '$(STACK)' # without .venv it is the system's
test:
	@bash setup/setup --tests
	@$(ENV) && unset MAKELEVEL MAKEFLAGS && bash setup/checks && $(if $(ARGS),pytest $(ARGS),pytest -q -m unit --cov -n auto --maxprocesses 4 && pytest -m "not unit")
bench: setup
	@$(ENV) && python -m bench $(ARGS)
env:
	@bash setup/env '$(STACK)'
