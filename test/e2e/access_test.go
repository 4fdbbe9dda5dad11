//go:build e2e

package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// access is what may be done: verb, API group, resource.
type access struct{ verb, group, resource string }

// What the plugin's account may do, and above all what it may not: it runs privileged on every GPU node, and whoever
// takes over one node must not have the cluster.
var (
	allowed = []access{
		{"list", "resource.k8s.io", "resourceslices"}, {"watch", "resource.k8s.io", "resourceslices"}, {"create", "resource.k8s.io", "resourceslices"},
		{"update", "resource.k8s.io", "resourceslices"}, {"delete", "resource.k8s.io", "resourceslices"},
		{"get", "resource.k8s.io", "resourceclaims"},
		{"get", "", "nodes"},
	}
	denied = []access{
		{"*", "*", "*"},
		{"get", "", "secrets"}, {"list", "", "secrets"}, {"watch", "", "secrets"}, {"list", "", "configmaps"}, {"update", "", "configmaps"},
		{"create", "", "pods"}, {"list", "", "pods"}, {"watch", "", "pods"}, {"delete", "", "pods"}, {"patch", "", "pods"}, {"create", "", "pods/exec"}, {"create", "", "pods/eviction"},
		{"patch", "", "nodes"}, {"update", "", "nodes"}, {"delete", "", "nodes"}, {"patch", "", "nodes/status"}, {"get", "", "nodes/proxy"},
		{"create", "", "serviceaccounts/token"}, {"impersonate", "", "users"}, {"impersonate", "", "serviceaccounts"}, {"create", "", "namespaces"},
		{"create", "resource.k8s.io", "resourceclaims"}, {"update", "resource.k8s.io", "resourceclaims"}, {"patch", "resource.k8s.io", "resourceclaims"}, {"delete", "resource.k8s.io", "resourceclaims"},
		{"create", "resource.k8s.io", "deviceclasses"}, {"update", "resource.k8s.io", "deviceclasses"}, {"create", "resource.k8s.io", "devicetaintrules"},
		{"deletecollection", "resource.k8s.io", "resourceslices"},
		{"patch", "apps", "daemonsets"}, {"create", "apps", "deployments"},
		{"create", "rbac.authorization.k8s.io", "clusterrolebindings"}, {"bind", "rbac.authorization.k8s.io", "clusterroles"}, {"escalate", "rbac.authorization.k8s.io", "clusterroles"},
		{"update", "admissionregistration.k8s.io", "validatingadmissionpolicies"}, {"delete", "admissionregistration.k8s.io", "validatingadmissionpolicybindings"},
		{"approve", "certificates.k8s.io", "signers"},
	}
)

func TestPluginAccess(t *testing.T) {
	e := kit.New(t, fleet)
	for _, a := range allowed {
		require.True(t, may(t, e.Client, kit.ServiceAccount, attributes(a)), "%+v", a)
	}
	for _, a := range denied {
		require.False(t, may(t, e.Client, kit.ServiceAccount, attributes(a)), "%+v", a)
	}
}

// may asks the API server what an account of the chart's may do.
func may(t *testing.T, client kubernetes.Interface, account string, what *authorizationv1.ResourceAttributes) bool {
	t.Helper()
	review, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user(account), Groups: groups, ResourceAttributes: what,
		},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	return review.Status.Allowed
}

func user(account string) string {
	return "system:serviceaccount:" + kit.SystemNamespace + ":" + account
}

// groups are those of the chart's accounts.
var groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + kit.SystemNamespace, "system:authenticated"}

// attributes ask for all namespaces, and so for each.
func attributes(a access) *authorizationv1.ResourceAttributes {
	resource, subresource, _ := strings.Cut(a.resource, "/")
	return &authorizationv1.ResourceAttributes{Verb: a.verb, Group: a.group, Resource: resource, Subresource: subresource}
}

// The API server holds the plugin of a node to the slices of that node.
func TestSlicesOfOtherNodesAreForbidden(t *testing.T) {
	e := kit.New(t, fleet)
	pod, err := e.PluginPod(t.Context())
	require.NoError(t, err)
	plugin := as(t, e, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}).ResourceV1().ResourceSlices()
	admin := e.Client.ResourceV1().ResourceSlices()

	e.Eventually("the policy to be in force", func(ctx context.Context) error {
		_, err := plugin.Create(ctx, slice("other-node"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "the plugin of node 'kerf-node' must not write a slice of node 'other-node'") {
			return errors.Join(errors.New("the API server does not refuse the slice, or not for that"), err)
		}
		return nil
	})

	own, err := plugin.Create(t.Context(), slice(kit.NodeName), metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, plugin.Delete(t.Context(), own.Name, metav1.DeleteOptions{}))

	foreign, err := admin.Create(t.Context(), slice("other-node"), metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, admin.Delete(context.Background(), foreign.Name, metav1.DeleteOptions{})) })
	err = plugin.Delete(t.Context(), foreign.Name, metav1.DeleteOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	changed := foreign.DeepCopy()
	changed.Spec.Pool.Generation++
	_, err = plugin.Update(t.Context(), changed, metav1.UpdateOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)

	// A token that belongs to no pod says nothing about a node.
	unbound := as(t, e, nil).ResourceV1().ResourceSlices()
	_, err = unbound.Create(t.Context(), slice(kit.NodeName), metav1.CreateOptions{})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	require.ErrorContains(t, err, "this token is not bound to a node")
}

// as is a client with a token of the plugin's account.
func as(t *testing.T, e *kit.Env, bound *authenticationv1.BoundObjectReference) kubernetes.Interface {
	t.Helper()
	token, err := e.Client.CoreV1().ServiceAccounts(kit.SystemNamespace).CreateToken(t.Context(), kit.ServiceAccount,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}, metav1.CreateOptions{})
	require.NoError(t, err)
	config := rest.AnonymousClientConfig(e.Config)
	config.BearerToken = token.Status.Token
	client, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	return client
}

// slice is an empty one of another driver's pool, so that nobody looks for devices in it.
func slice(node string) *resourceapi.ResourceSlice {
	return &resourceapi.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"},
		Spec: resourceapi.ResourceSliceSpec{
			Driver: "e2e.kerf.dev", NodeName: &node, Pool: resourceapi.ResourcePool{Name: node, Generation: 1, ResourceSliceCount: 1},
		},
	}
}
