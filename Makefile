# A thin layer over the plain tools; after `make setup` they work by themselves: eval "$(make env)"
STACK ?= dev
NUMINST ?=
FORGET ?=
export VHOST_BACKEND SPDK_SOURCE ALLOW
ARGS ?=
ENV = environment=$$(bash setup/env) && eval "$$environment"

.PHONY: help setup up preview status check down test bench env
help:
	@echo 'make up [STACK=dev] [NUMINST=N]   machine ready, stack up, status'
	@echo '   [VHOST_BACKEND=spdk] [SPDK_SOURCE=DIR]   for this run only'
	@echo '   [ALLOW=interrupt,blank]                  consent to a change that takes pages away, or blanks disks'
	@echo '   [FORGET=worker3]                         leave a storage host that is gone for good, and not in the config'
	@echo 'make preview [STACK=dev] [ARGS="--json | --save FILE | --against FILE"]   what up would do, and what that costs'
	@echo 'make status [WATCH=1] | down        [STACK=dev]'
	@echo 'make check                        is what runs what the program says? make up mends what is not'
	@echo 'make test [ARGS="-m unit"]        all checks and tests'
	@echo 'make bench [ARGS="bringup grow"]   figures beside their goals, and the timeline of a bring-up'
	@echo 'eval "$$(make env [STACK=dev])"    the environment for pulumi, kubectl and pytest'
setup:
	@bash setup/setup
up: setup
	@$(ENV) && python -m operate.up '$(STACK)' --numinst '$(NUMINST)' --forget '$(FORGET)'
preview:
	@bash setup/setup --tools >&2
	@$(ENV) && python -m operate.preview '$(STACK)' $(ARGS)
status:
	@$(ENV) && PULUMI_STACK='$(STACK)' python -m operate.status $(if $(WATCH),--watch)
check:
	@$(ENV) && PULUMI_STACK='$(STACK)' python -m operate.check
down:
	@$(ENV) && python3 -m operate.down '$(STACK)' # without .venv it is the system's
test:
	@bash setup/setup --tests
	@$(ENV) && unset MAKELEVEL MAKEFLAGS && bash setup/checks && $(if $(ARGS),pytest $(ARGS),pytest -q -m unit --cov -n auto --maxprocesses 4 && pytest -m engine -n 2 --dist loadfile && pytest -m "e2e and not matrix")
bench: setup
	@$(ENV) && python -m bench $(ARGS)
env:
	@bash setup/env '$(STACK)'
