//go:build e2e

package e2e

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// controlled is the fleet with a controller, for which the chart has these values in addition.
func controlled(values map[string]any) kit.Shape {
	shape := fleet
	shape.Controller = map[string]any{}
	for name, value := range values {
		shape.Controller[name] = value
	}
	return shape
}

// grant is what may be done to resources of an API group, as lists of words.
type grant struct{ group, resources, verbs string }

// What the controller's account may do, in each namespace, with each way to install it. All else that the API server
// serves it may not: it reads the whole cluster, so that much depends on what it cannot write.
var (
	controllerReads = []grant{
		{"scaling.kerf.dev", "gpuscalinghints gpuelasticpools", "get list watch"},
		{"", "nodes pods", "get list watch"},
		{"resource.k8s.io", "resourceslices resourceclaims resourceclaimtemplates deviceclasses devicetaintrules", "get list watch"},
		{"apps", "deployments statefulsets", "get list watch"},
		{"autoscaling", "horizontalpodautoscalers", "get list watch"},
		{"keda.sh", "scaledobjects", "list"},
		{"karpenter.sh", "nodepools", "list"},
	}
	controllerTells = []grant{
		{"scaling.kerf.dev", "gpuscalinghints/status gpuelasticpools/status", "patch"},
		{"events.k8s.io", "events", "create patch"},
	}
	controllerLeads  = []grant{{"coordination.k8s.io", "leases", "create"}, {"", "events", "create patch"}}
	controllerScales = []grant{{"apps", "deployments/scale statefulsets/scale", "update"}}
	controllerMarks  = []grant{{"", "pods", "patch"}}

	controllerModes = map[string]struct {
		values map[string]any
		grants []grant
	}{
		"advises": {nil, nil},
		"scales":  {map[string]any{"scale": true}, controllerScales},
		"marks":   {map[string]any{"deletionCosts": true}, controllerMarks},
		"both":    {map[string]any{"scale": true, "deletionCosts": true}, append(controllerScales, controllerMarks...)},
	}
)

// verbs are all that resources have. Those that only mean something for some are in powers.
var verbs = strings.Fields("get list watch create update patch delete deletecollection")

// powers are what an account could become more with. Nobody gets them.
var powers = []authorizationv1.ResourceAttributes{
	{Verb: "*", Group: "*", Resource: "*"},
	{Verb: "impersonate", Resource: "users"},
	{Verb: "impersonate", Resource: "groups"},
	{Verb: "impersonate", Resource: "serviceaccounts"},
	{Verb: "impersonate", Group: "authentication.k8s.io", Resource: "userextras"},
	{Verb: "bind", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Verb: "bind", Group: "rbac.authorization.k8s.io", Resource: "roles"},
	{Verb: "escalate", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Verb: "escalate", Group: "rbac.authorization.k8s.io", Resource: "roles"},
	{Verb: "approve", Group: "certificates.k8s.io", Resource: "signers"},
	{Verb: "sign", Group: "certificates.k8s.io", Resource: "signers"},
	{Verb: "attest", Group: "certificates.k8s.io", Resource: "signers"},
	{Verb: "update", Group: "keda.sh", Resource: "scaledobjects"},
	{Verb: "get", Group: "keda.sh", Resource: "triggerauthentications"},
	{Verb: "patch", Group: "karpenter.sh", Resource: "nodepools"},
	{Verb: "create", Group: "karpenter.sh", Resource: "nodeclaims"},
	{Verb: "delete", Group: "karpenter.sh", Resource: "nodeclaims"},
	// Of the lease that it leads by, and the object by which it knows the cluster autoscaler, only that one.
	{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: kit.SystemNamespace, Name: "another"},
	{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: kit.SystemNamespace, Name: "another"},
	{Verb: "delete", Group: "coordination.k8s.io", Resource: "leases", Namespace: kit.SystemNamespace, Name: kit.Controller},
	{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-system", Name: "kube-scheduler"},
	{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-system", Name: kit.Controller},
	{Verb: "get", Resource: "configmaps", Namespace: "kube-system", Name: "extension-apiserver-authentication"},
	{Verb: "update", Resource: "configmaps", Namespace: "kube-system", Name: "cluster-autoscaler-status"},
	{Verb: "get", Resource: "configmaps", Namespace: kit.SystemNamespace, Name: "cluster-autoscaler-status"},
}

func TestControllerAccess(t *testing.T) {
	for name, mode := range controllerModes {
		t.Run(name, func(t *testing.T) {
			e := kit.New(t, controlled(mode.values))
			config := rest.CopyConfig(e.Config)
			config.QPS = -1 // Thousands of questions, one after the other.
			client, err := kubernetes.NewForConfig(config)
			require.NoError(t, err)

			all := servedResources(t, client)
			for _, known := range []string{"secrets", "pods/exec", "pods/eviction", "serviceaccounts/token", "nodes/proxy", "deployments.apps/scale", "gpuscalinghints.scaling.kerf.dev/status"} {
				require.Contains(t, all, known)
			}
			everywhere := expand(controllerReads, controllerTells, mode.grants)
			for namespace, further := range map[string]sets.Set[access]{
				// In all namespaces, and so in each.
				"": nil, kit.SystemNamespace: expand(controllerLeads), "kube-system": nil,
			} {
				want, got := everywhere.Union(further), sets.New[access]()
				asked := sets.New(want.UnsortedList()...)
				for _, resource := range all {
					for _, verb := range verbs {
						if namespace == "" || resource.namespaced {
							asked.Insert(access{verb, resource.group, resource.name})
						}
					}
				}
				for a := range asked {
					what := attributes(a)
					what.Namespace = namespace
					// Some things anybody may, as to ask what they may.
					if may(t, client, kit.Controller, what) && (want.Has(a) || !may(t, client, "default", what)) {
						got.Insert(a)
					}
				}
				require.Empty(t, want.Difference(got).UnsortedList(), "may not, in namespace %q", namespace)
				require.Empty(t, got.Difference(want).UnsortedList(), "may, in namespace %q", namespace)
			}

			for _, what := range powers {
				require.False(t, may(t, client, kit.Controller, &what), "%+v", what)
			}
			for _, what := range []authorizationv1.ResourceAttributes{
				{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: kit.SystemNamespace, Name: kit.Controller},
				{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: kit.SystemNamespace, Name: kit.Controller},
				{Verb: "get", Resource: "configmaps", Namespace: "kube-system", Name: "cluster-autoscaler-status"},
			} {
				require.True(t, may(t, client, kit.Controller, &what), "%+v", what)
			}
		})
	}
}

func expand(lists ...[]grant) sets.Set[access] {
	all := sets.New[access]()
	for _, list := range lists {
		for _, g := range list {
			for _, resource := range strings.Fields(g.resources) {
				for _, verb := range strings.Fields(g.verbs) {
					all.Insert(access{verb, g.group, resource})
				}
			}
		}
	}
	return all
}

// served is a resource of the API server.
type served struct {
	group, name string
	namespaced  bool
}

// servedResources are all that the API server has, subresources among them, by their names as kubectl has them.
func servedResources(t *testing.T, client kubernetes.Interface) map[string]served {
	t.Helper()
	_, lists, err := client.Discovery().ServerGroupsAndResources()
	require.NoError(t, err)
	all := map[string]served{}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		require.NoError(t, err)
		for _, r := range list.APIResources {
			resource, subresource, _ := strings.Cut(r.Name, "/")
			name := schema.GroupResource{Group: version.Group, Resource: resource}.String()
			if subresource != "" {
				name += "/" + subresource
			}
			all[name] = served{version.Group, r.Name, r.Namespaced}
		}
	}
	return all
}

// With deletionCosts the controller may patch pods, and the API server holds it to the one annotation.
func TestControllerOnlyMarksPods(t *testing.T) {
	e := kit.New(t, controlled(map[string]any{"deletionCosts": true}))
	const name = "replica"
	made := kit.PodSpec("")
	made.ResourceClaims, made.Containers[0].Resources.Claims = nil, nil
	require.NoError(t, e.TryPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "replica"}, Annotations: map[string]string{"example.com/owner": "somebody"}},
		Spec:       made,
	}))
	pod := e.Running(name)[0]

	config := rest.CopyConfig(e.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user(kit.Controller), Groups: groups}
	controller, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	patch := func(client kubernetes.Interface, kind types.PatchType, body string, options metav1.PatchOptions) (*corev1.Pod, error) {
		return client.CoreV1().Pods(e.Namespace).Patch(t.Context(), name, kind, []byte(body), options)
	}

	const refusal = "the controller may change nothing of a pod but the annotation controller.kubernetes.io/pod-deletion-cost"
	trial := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
	e.Eventually("the policy to be in force", func(context.Context) error {
		_, err := patch(controller, types.MergePatchType, `{"metadata": {"labels": {"app": "another"}}}`, trial)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), refusal) {
			return errors.Join(errors.New("the API server does not refuse the patch, or not for that"), err)
		}
		return nil
	})
	for what, body := range map[string]string{
		"a label":                         `{"metadata": {"labels": {"app": "another"}}}`,
		"a further label":                 `{"metadata": {"labels": {"tier": "gold"}}}`,
		"no label":                        `{"metadata": {"labels": null}}`,
		"another annotation":              `{"metadata": {"annotations": {"example.com/owner": "me"}}}`,
		"a further annotation":            `{"metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}}}`,
		"a further, empty annotation":     `{"metadata": {"annotations": {"example.com/empty": ""}}}`,
		"another annotation less":         `{"metadata": {"annotations": {"example.com/owner": null}}}`,
		"no annotations":                  `{"metadata": {"annotations": null}}`,
		"the cost and another annotation": `{"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1", "example.com/owner": "me"}}}`,
		"the cost and a label":            `{"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}, "labels": {"app": "another"}}}`,
		"a finalizer":                     `{"metadata": {"finalizers": ["example.com/stay"]}}`,
		"an owner":                        `{"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "` + kit.NodeName + `", "uid": "1"}]}}`,
		"an image":                        `{"spec": {"containers": [{"name": "workload", "image": "another:v1"}]}}`,
		"a deadline":                      `{"spec": {"activeDeadlineSeconds": 1}}`,
		"a toleration":                    `{"spec": {"tolerations": [{"key": "example.com/any", "operator": "Exists"}]}}`,
	} {
		_, err := patch(e.Client, types.StrategicMergePatchType, body, trial)
		require.NoError(t, err, "%s: nothing else is wrong with it", what)
		_, err = patch(controller, types.StrategicMergePatchType, body, metav1.PatchOptions{})
		require.True(t, apierrors.IsForbidden(err), "%s: %v", what, err)
		require.ErrorContains(t, err, refusal, what)
	}

	cost := func(value string) string {
		return `{"metadata": {"uid": "` + string(pod.UID) + `", "annotations": {"` + corev1.PodDeletionCost + `": ` + value + `}}}`
	}
	want := *pod.DeepCopy()
	for _, value := range []string{`"-1000000000"`, `"-2"`, `null`} {
		marked, err := patch(controller, types.MergePatchType, cost(value), metav1.PatchOptions{})
		require.NoError(t, err, value)
		delete(want.Annotations, corev1.PodDeletionCost)
		if value != "null" {
			want.Annotations[corev1.PodDeletionCost] = strings.Trim(value, `"`)
		}
		require.Equal(t, want.Annotations, marked.Annotations)
		require.Equal(t, want.Labels, marked.Labels)
		require.Equal(t, want.Spec, marked.Spec)
	}
	// There is no other way: not with another kind of patch, nor as the apply of a pod that is not there, nor beside the pod.
	_, err = controller.CoreV1().Pods(e.Namespace).Patch(t.Context(), "new", types.ApplyPatchType, []byte(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}`), metav1.PatchOptions{FieldManager: "e2e"})
	require.True(t, apierrors.IsForbidden(err), "%v", err)
	_, err = patch(controller, types.ApplyPatchType, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "`+name+`", "labels": {"tier": "gold"}}}`, metav1.PatchOptions{FieldManager: "e2e"})
	require.ErrorContains(t, err, refusal)
	_, err = patch(controller, types.JSONPatchType, `[{"op": "add", "path": "/metadata/labels/tier", "value": "gold"}]`, metav1.PatchOptions{})
	require.ErrorContains(t, err, refusal)
	for _, subresource := range []string{"status", "resize", "ephemeralcontainers"} {
		_, err = controller.CoreV1().Pods(e.Namespace).Patch(t.Context(), name, types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}, subresource)
		require.True(t, apierrors.IsForbidden(err), "%s: %v", subresource, err)
	}
}
