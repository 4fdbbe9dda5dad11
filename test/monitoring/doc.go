// Package monitoring holds what deployments/monitoring and deployments/autoscaling
// ship, and the document about it, to promtool, to the types of Kubernetes and to
// one another, without a cluster. It contains nothing but tests.
package monitoring
