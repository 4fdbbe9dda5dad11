package fleet

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// ReadCluster reads from the API server all that decides about claims, and the
// pods and templates of one namespace.
func ReadCluster(ctx context.Context, client kubernetes.Interface, namespace string) (*Objects, error) {
	o := &Objects{}
	resources, all := client.ResourceV1(), metav1.ListOptions{}

	nodes, err := client.CoreV1().Nodes().List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	o.Nodes = pointers(nodes.Items)
	slices, err := resources.ResourceSlices().List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("list resource slices: %w", err)
	}
	o.Slices = pointers(slices.Items)
	classes, err := resources.DeviceClasses().List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("list device classes: %w", err)
	}
	o.Classes = pointers(classes.Items)
	claims, err := resources.ResourceClaims(metav1.NamespaceAll).List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("list resource claims of all namespaces, which hold the devices: %w", err)
	}
	o.Claims = pointers(claims.Items)
	// Kubernetes 1.36 does not serve them in this version.
	rules, err := resources.DeviceTaintRules().List(ctx, all)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("list device taint rules: %w", err)
	}
	if err == nil {
		o.TaintRules = pointers(rules.Items)
	}
	templates, err := resources.ResourceClaimTemplates(namespace).List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("list resource claim templates: %w", err)
	}
	o.Templates = pointers(templates.Items)
	pods, err := client.CoreV1().Pods(namespace).List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	o.Pods = pointers(pods.Items)
	return o, nil
}
