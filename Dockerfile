# The image of kerf for real clusters: make docker-image DOCKER_IMAGE=registry.example.com/kerf:v0.1.0
#
# The tests do not build it, because they need no registry. The local cluster (make image, make demo, make e2e) runs an
# image of the same binaries, built by the same target of the Makefile.

# Debian 12 for both stages: kerf uses the C library of the second, and nvidia-cdi-hook, which the container runtime
# runs on the host, that of the host, which has to be glibc 2.34 or later.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY Makefile ./
COPY api api
COPY cmd cmd
COPY pkg pkg
ARG VERSION=devel
RUN make build VERSION=${VERSION}

# No library of the NVIDIA driver belongs in here: kerf loads that of the node, below the chart's driverRoot.
FROM debian:12.11-slim
COPY --from=build /src/bin/kerf /src/bin/kerf-sim-nvidia-smi /src/bin/nvidia-cdi-hook /usr/bin/
COPY LICENSE /usr/share/doc/kerf/LICENSE
ENTRYPOINT ["/usr/bin/kerf"]
