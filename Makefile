# Every target is documented by the comment behind it: `make help` prints them.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# Name of the cluster that demo, image, kubectl and helm work on.
NAME ?= demo
# Arguments of kubectl and helm: make kubectl ARGS="get pods"
ARGS ?=
# The cluster of kerf's end-to-end tests, and its version if it is not to be the default.
E2E ?= e2e
KUBERNETES ?=
# SWEEP=quick runs every fifth case of the sweep.
SWEEP ?=
# How long each fuzz target runs.
FUZZTIME ?= 10s

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BUILD := go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
# go-nvml finds NVML's symbols when they are called; where the linker binds all symbols at the start by default, the
# program would not start.
BUILD_CGO := go build -trimpath -ldflags '-s -w -X main.version=$(VERSION) "-extldflags=-Wl,-z,lazy"'
CLUSTER := bin/cluster
IMAGE := kerf:dev
# Name of the image for real clusters: make docker-image docker-push DOCKER_IMAGE=registry.example.com/kerf:v0.1.0
DOCKER_IMAGE ?= kerf:$(VERSION)

# Modules of their own keep the dependencies of the cluster, the tests and the tools out of the main one.
MODULES := $(patsubst %/,%,$(dir $(wildcard go.mod test/*/go.mod)))

.PHONY: help packages build generate test lint fuzz bench bench-start bench-health cluster image demo demo-down e2e kubectl helm docker-image docker-push clean

help: ## Print this help
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages: ## Install what building, tests, demo and e2e need on Debian and Ubuntu, besides Go; needs root
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
		gcc libc6-dev git pkg-config libseccomp-dev busybox-static containernetworking-plugins iptables mount prometheus
	@# For the test that opens the page of kerf diagnose, which is skipped without. Ubuntu has it as a snap only.
	@command -v chromium google-chrome >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium \
		|| echo "no chromium in the package index: the page of kerf diagnose will not be opened in a test"

build: ## Build bin/kerf, and what goes into its image beside it
	$(BUILD_CGO) -o bin/kerf ./cmd/kerf
	CGO_ENABLED=0 $(BUILD) -o bin/kerf-sim-nvidia-smi ./pkg/nvmlsim/nvidia-smi
	$(BUILD_CGO) -o bin/nvidia-cdi-hook github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook

CRDS := deployments/helm/kerf/files/crds
generate: ## Write again what is generated from the types in api/scaling: deep copies and CRDs
	go tool -modfile=hack/tools/go.mod controller-gen object crd paths=./api/scaling/... output:crd:dir=$(CRDS)

test: ## Run all tests that need neither root nor a cluster, with the race detector
	@for m in $(MODULES); do echo "== go test $$m"; go -C $$m test -race ./...; done

.PHONY: sweep bin/kerf-sweep
# A program with the tag sweep dies where it is told to: it is for these tests alone.
bin/kerf-sweep:
	@$(BUILD_CGO) -tags sweep -o $@ ./cmd/kerf
	@CGO_ENABLED=0 $(BUILD) -o bin/kerf-sim-nvidia-smi ./pkg/nvmlsim/nvidia-smi

sweep: bin/kerf-sweep ## Kill the plugin at every operation and see that nothing is left wrong; SWEEP=quick: every 5th case
	SWEEP=$(SWEEP) go test -tags sweep -count=1 -v -timeout 60m -parallel 3 ./test/sweep

lint: bin/golangci-lint ## Check format, vet, golangci-lint and the go.mod files
	@out=$$(gofmt -l api cmd hack pkg test); test -z "$$out" || { echo "not gofmt:"; echo "$$out"; exit 1; }
	@for m in $(MODULES); do \
		echo "== vet and golangci-lint $$m"; \
		go -C $$m vet -tags e2e,sweep ./...; \
		(cd $$m && $(CURDIR)/bin/golangci-lint run --config $(CURDIR)/.golangci.yml ./...); \
	done
	@for m in $(MODULES); do echo "== go mod tidy $$m"; go -C $$m mod tidy -diff; done

# Go's build cache tells whether there is anything to do, so this always runs; the same holds for bin/cluster.
.PHONY: bin/golangci-lint bin/cluster
bin/golangci-lint:
	@echo "== building golangci-lint"
	@go -C hack/tools build -trimpath -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

bin/cluster:
	@go -C test/cluster build -trimpath -o $(CURDIR)/$@ .

fuzz: ## Run every fuzz target for FUZZTIME (10s)
	@grep -rl --include='*_test.go' '^func Fuzz' api cmd pkg | while read -r file; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file"); do \
			echo "== $$target in $$(dirname "$$file")"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "./$$(dirname "$$file")"; \
		done; \
	done

bench: ## Run all benchmarks that need no cluster
	go test -run '^$$' -bench . -benchmem ./...

bench-start: build bin/cluster ## Measure the plugin's start and memory on a cluster of its own; needs root
	go -C test/e2e test -c -tags e2e -o $(CURDIR)/bin/e2e.test .
	@trap '$(CLUSTER) down --name bench' EXIT; \
	$(CLUSTER) up --name bench; \
	$(CLUSTER) exec --name bench -- bin/e2e.test -test.run '^$$' -test.bench Start -test.benchtime 10x

bench-health: build bin/cluster ## Measure how long an Xid takes to its taint, and what flapping boards cost; needs root
	go -C test/e2e test -c -tags e2e -o $(CURDIR)/bin/e2e.test .
	@trap '$(CLUSTER) down --name bench' EXIT; \
	$(CLUSTER) up --name bench; \
	$(MAKE) --no-print-directory image NAME=bench; \
	$(CLUSTER) exec --name bench -- bin/e2e.test -test.run '^$$' -test.bench XidToTaint -test.benchtime 10x; \
	$(CLUSTER) exec --name bench -- bin/e2e.test -test.run '^$$' -test.bench Flapping -test.benchtime 1x

cluster: bin/cluster ## Start a local Kubernetes called NAME (demo); needs root
	$(CLUSTER) up --name $(NAME)

image: build bin/cluster ## Make the image kerf:dev and give it to the running cluster NAME
	$(CLUSTER) image --name $(NAME) --tag $(IMAGE) \
		bin/kerf:/usr/bin/kerf bin/kerf-sim-nvidia-smi:/usr/bin/kerf-sim-nvidia-smi bin/nvidia-cdi-hook:/usr/bin/nvidia-cdi-hook

demo: build bin/cluster ## Start a cluster with 8 simulated H100, install kerf and run the examples; needs root
	go run ./hack/demo --cluster $(CLUSTER) --name $(NAME)

demo-down: bin/cluster ## Take the demo's cluster down
	$(CLUSTER) down --name $(NAME)

.PHONY: e2e-cluster e2e-kerf
e2e: e2e-cluster e2e-kerf ## Run the end-to-end tests on clusters of their own; needs root

e2e-cluster: ## Those of the local cluster itself
	go -C test/cluster test -tags e2e -count=1 -timeout 30m -v ./e2e

# CRDs of other projects are in Go modules, and inside the cluster is no network to fetch them. Only the archives are
# needed, so it is no matter that some want a later Go.
.PHONY: e2e-crds
e2e-crds:
	@sed '/^#/d; s/ .*//' test/e2e/testdata/crds.txt | sort -u | GOTOOLCHAIN=local xargs -n 1 go mod download -json >/dev/null || true

# The test binary runs inside the cluster, where its API server is reached and the node's files are seen.
e2e-kerf: build bin/cluster e2e-crds ## Those of kerf: RUN=REGEXP picks some, KUBERNETES=VERSION, KEEP=1 leaves the cluster up
	go -C test/e2e test -c -tags e2e -o $(CURDIR)/bin/e2e.test .
	@$(CLUSTER) down --name $(E2E); \
	trap '[ "$(KEEP)" = 1 ] || $(CLUSTER) down --name $(E2E)' EXIT; \
	$(CLUSTER) up --name $(E2E) $(if $(KUBERNETES),--kubernetes $(KUBERNETES)); \
	$(MAKE) --no-print-directory image NAME=$(E2E); \
	$(CLUSTER) exec --name $(E2E) -- bin/e2e.test -test.v -test.timeout 60m -test.run '$(RUN)'

kubectl: bin/cluster ## Run kubectl ARGS in the cluster NAME
	@$(CLUSTER) kubectl --name $(NAME) -- $(ARGS)

helm: bin/cluster ## Run helm ARGS in the cluster NAME
	@$(CLUSTER) helm --name $(NAME) -- $(ARGS)

docker-image: ## Build DOCKER_IMAGE for real clusters; needs docker and a registry to pull from
	docker build --build-arg VERSION=$(VERSION) --tag $(DOCKER_IMAGE) .

docker-push: ## Push DOCKER_IMAGE to its registry
	docker push $(DOCKER_IMAGE)

clean: ## Remove what was built here; the cluster's tools stay in ~/.cache/kerf
	rm -rf bin dist
