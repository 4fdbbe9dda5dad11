// Package e2e tests real clusters: that they work, and above all that nothing is left of them, however they end.
//
// The tests need root and built tools, and have the build tag e2e: go test -tags e2e ./e2e
package e2e
