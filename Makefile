# Every target is documented by the comment behind it: `make help` prints them.
.DEFAULT_GOAL := help
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo devel)
# Modules of their own keep the cluster's and the tests' dependencies out of the main one.
MODULES := $(patsubst %/,%,$(dir $(wildcard go.mod test/*/go.mod)))

.PHONY: help build test lint

help: ## Print this help
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/kerf, and the nvidia-smi of simulated GPUs beside it
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/kerf ./cmd/kerf
	CGO_ENABLED=0 go build -trimpath -o bin/kerf-sim-nvidia-smi ./pkg/nvmlsim/nvidia-smi

test: ## Run all tests that need neither root nor a cluster, with the race detector
	@set -e; for m in $(MODULES); do echo "== go test $$m"; go -C $$m test -race ./...; done

lint: ## Check format and vet
	@out=$$(gofmt -l api cmd pkg test); test -z "$$out" || { echo "not gofmt:"; echo "$$out"; exit 1; }
	@set -e; for m in $(MODULES); do echo "== go vet $$m"; go -C $$m vet ./...; done
