package fleet

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kerf-project/kerf/pkg/pool"
)

func read(t *testing.T, texts ...string) *Objects {
	t.Helper()
	o := &Objects{}
	for _, text := range texts {
		require.NoError(t, o.Read(strings.NewReader(text)))
	}
	return o
}

// All examples become pods with claims that fit on the board they are written for.
func TestExamplesAreUnderstood(t *testing.T) {
	files, err := filepath.Glob("../../deployments/examples/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	o := &Objects{}
	for _, file := range files {
		text, err := os.Open(file)
		require.NoError(t, err)
		require.NoError(t, o.Read(text), file)
		require.NoError(t, text.Close())
	}
	require.Empty(t, o.Ignored)
	o.Classes = DefaultClasses(pool.DefaultDriver)
	require.Equal(t, []string{"Deployment"}, kinds(o, "timeslice"))

	f := New(snapshot(t, "8xH100-SXM5-80GB"))
	for _, w := range o.Workloads {
		pod, err := o.PodOf(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Name}, Spec: w.Spec})
		require.NoError(t, err, w.Name)
		require.NotEmpty(t, pod.Claims, w.Name)
		_, placed, err := f.Place(t.Context(), pod)
		require.NoError(t, err, w.Name)
		for _, c := range placed { // The next pod that shares it goes where it is.
			if i := slices.IndexFunc(o.Claims, func(o *resourceapi.ResourceClaim) bool { return Key(o) == Key(c) }); i >= 0 {
				o.Claims[i] = c
			}
		}
	}
}

func kinds(o *Objects, name string) []string {
	var all []string
	for _, w := range o.Workloads {
		if w.Name == name {
			all = append(all, w.Kind)
		}
	}
	return all
}

func TestReadObjects(t *testing.T) {
	o := read(t, `# comment
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node-0}}
- {apiVersion: resource.k8s.io/v1, kind: ResourceClaim, metadata: {name: c}, spec: {devices: {requests: [{name: r, exactly: {deviceClassName: x}}, {name: s, firstAvailable: [{name: a, deviceClassName: z}]}]}}}
---
{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "batch"}, "spec": {"parallelism": 4, "completions": 3, "template": {"spec": {"containers": []}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: s}
spec: {replicas: 2, template: {spec: {containers: []}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: sa}
---
apiVersion: example.com/v1
kind: Other
metadata: {name: x}
`)
	require.Len(t, o.Nodes, 1)
	require.Equal(t, "default", o.Claims[0].Namespace)
	require.Equal(t, resourceapi.DeviceAllocationModeExactCount, o.Claims[0].Spec.Devices.Requests[0].Exactly.AllocationMode)
	require.EqualValues(t, 1, o.Claims[0].Spec.Devices.Requests[1].FirstAvailable[0].Count)
	require.Equal(t, []string{"ServiceAccount default/sa", "Other"}, o.Ignored)
	require.Len(t, o.Workloads, 2)
	require.Equal(t, 3, o.Workloads[0].Replicas)
	require.Equal(t, 2, o.Workloads[1].Replicas)

	for text, want := range map[string]string{
		"apiVersion: resource.k8s.io/v1beta1\nkind: ResourceSlice\nmetadata: {name: x}": "resource.k8s.io/v1",
		"kind: Pod": "apiVersion",
		"[":         "yaml",
	} {
		require.ErrorContains(t, (&Objects{}).Read(strings.NewReader(text)), want)
	}
}

func TestFind(t *testing.T) {
	o := read(t, `
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: shared}
spec: {devices: {requests: [{name: r, exactly: {deviceClassName: x}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec: {containers: [], resourceClaims: [{name: c, resourceClaimName: shared}, {name: t, resourceClaimTemplateName: missing}]}
---
apiVersion: v1
kind: Pod
metadata: {name: made}
spec: {containers: [], resourceClaims: [{name: c, resourceClaimTemplateName: t}, {name: none, resourceClaimTemplateName: t}]}
status: {resourceClaimStatuses: [{name: c, resourceClaimName: shared}, {name: none}]}
`)
	for name, want := range map[string]string{
		"shared": "", "claim/shared": "", "pod/made": "", "made": "",
		"pod/shared": "missing", "other": "neither", "claim/made": "no ResourceClaim", "pod/other": "no Pod", "node/x": "claim/NAME",
	} {
		got, err := o.Find("default", name)
		if want != "" {
			require.ErrorContains(t, err, want, name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, o.Claims, got.Claims, name)
	}
	require.Len(t, Pod{Claims: o.Claims}.Pending(), 1)
}

func TestExcluded(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}}}
	tolerations := []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
	elsewhere := claim("c", wholeClass)
	elsewhere.Status.Allocation = &resourceapi.AllocationResult{NodeSelector: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
		{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"m"}}}},
	}}}
	for want, p := range map[string]Pod{
		"":                  {Spec: &corev1.PodSpec{Tolerations: tolerations}},
		"does not tolerate": {Spec: &corev1.PodSpec{}},
		"names node":        {Spec: &corev1.PodSpec{NodeName: "m"}},
		"labels":            {Spec: &corev1.PodSpec{Tolerations: tolerations, NodeSelector: map[string]string{"zone": "b"}}},
		"on another node":   {Claims: []*resourceapi.ResourceClaim{elsewhere}},
	} {
		got := p.Excluded(node)
		require.Equal(t, want == "", got == "", got)
		require.Contains(t, got, want)
	}
	node.Spec.Unschedulable = true
	require.Contains(t, Pod{Spec: &corev1.PodSpec{Tolerations: tolerations}}.Excluded(node), "cordoned")
}

func TestReadCluster(t *testing.T) {
	s := snapshot(t, "L40S")
	c := claim("c", wholeClass)
	client := fake.NewClientset(s.Slices[0], s.Slices[1], s.Classes[0], c,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-0"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", UID: types.UID("1")}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "q", Namespace: "other"}},
		&resourceapi.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: "rule"}},
		&resourceapi.ResourceClaimTemplate{ObjectMeta: metav1.ObjectMeta{Name: "t", Namespace: "default"}})
	o, err := ReadCluster(t.Context(), client, "default")
	require.NoError(t, err)
	require.Len(t, o.Pods, 1)
	require.Len(t, o.TaintRules, 1)
	require.Len(t, o.Templates, 1)
	_, _, err = New(o.Snapshot).Place(t.Context(), alone(c))
	require.NoError(t, err)
}
