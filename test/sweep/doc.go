// Package sweep runs the real "kerf plugin" on simulated boards, between a scripted
// API server and a scripted kubelet, and kills it at every operation that changes
// something. After each it holds the node against what kerf promises: see
// docs/reliability.md. Its tests need the build tag sweep and bin/kerf-sweep:
// "make sweep" has both. They need no root and no cluster.
package sweep
