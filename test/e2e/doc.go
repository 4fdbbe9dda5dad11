// Package e2e tests kerf as its users meet it: the chart, the image and the examples on a real kubelet, with simulated
// GPUs. What a container was given is asserted from inside that container, from the simulated hardware, from the node's
// files and from the API.
//
// The tests have the build tag e2e and run inside the local cluster, where its API server is reached and the node's
// files are seen: "make e2e" makes both. They run one after the other, since there is one node, and in any order.
package e2e
