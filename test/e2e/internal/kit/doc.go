// Package kit owns what the end-to-end tests share: an installed kerf on a node of a given shape, a namespace for each
// test, and the comparison of what a container has with what it should have.
//
// It changes the cluster as a user would, with helm, kubectl and the API. The node's files and the simulated hardware
// it only reads. What should be is worked out from the API objects and the simulator, never from kerf's own records.
package kit
