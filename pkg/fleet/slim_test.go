package fleet

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/pool"
)

func transform[T any](t testing.TB, i *Interner, all []T) {
	t.Helper()
	for _, o := range all {
		same, err := i.Transform(o)
		require.NoError(t, err)
		require.True(t, same == any(o), "the same object")
	}
}

// What an Interner leaves of the slices is allocated as they are, also where the
// constraints are about what it has replaced.
func TestSlimSlicesAreAllocatedAlike(t *testing.T) {
	boards := []string{"2xH100-SXM5-80GB", "2xH100-SXM5-80GB", "H100-SXM5-80GB,L40S"}
	raw, slim := New(snapshot(t, boards...)), snapshot(t, boards...)
	transform(t, NewInterner(), slim.Slices)
	f, w := New(slim), newWorld(t, 1)
	fits := map[bool]int{}
	for i := range 200 {
		p := w.pod()
		p.Spec = nil
		wantNode, want, wantErr := raw.Place(t.Context(), p)
		node, got, err := f.Place(t.Context(), p)
		require.Equal(t, fmt.Sprint(wantErr), fmt.Sprint(err))
		require.Equal(t, wantNode, node)
		require.Equal(t, want, got)
		fits[err == nil]++
		if i%3 > 0 {
			for i := range got {
				raw.Release(want[i])
				f.Release(got[i])
			}
		}
	}
	require.Greater(t, fits[true], 20)
	require.Greater(t, fits[false], 20)
}

func TestSelectorsOfWhatWasDropped(t *testing.T) {
	s := snapshot(t, "2xH100-SXM5-80GB")
	uuid := *devicesOf(s.Slices)[0].Attributes["uuid"].StringValue
	raw := New(s)
	slim := snapshot(t, "2xH100-SXM5-80GB")
	transform(t, NewInterner(), slim.Slices)
	f := New(slim)
	by := func(expression string) Pod {
		c := claim("c", wholeClass)
		c.Spec.Devices.Requests[0].Exactly.Selectors = []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: expression}}}
		return alone(c)
	}
	for _, expression := range []string{
		fmt.Sprintf(`device.attributes["gpu.nvidia.com"].uuid == %q`, uuid),
		fmt.Sprintf(`device.attributes["gpu.nvidia.com"]["uu" + "id"] == %q`, uuid),
		fmt.Sprintf(`device.attributes["gpu.nvidia.com"].exists(k, device.attributes["gpu.nvidia.com"][k] == %q)`, uuid),
	} {
		p := by(expression)
		_, placed, err := raw.Place(t.Context(), p)
		require.NoError(t, err)
		raw.Release(placed[0])
		fits, err := raw.FitsEmpty(t.Context(), p)
		require.NoError(t, err)
		require.True(t, fits)

		_, _, err = f.Place(t.Context(), p)
		require.ErrorIs(t, err, ErrDropped)
		_, err = f.Allocate(t.Context(), f.Nodes()[0], p.Claims...)
		require.ErrorIs(t, err, ErrDropped)
		_, err = f.FitsEmpty(t.Context(), p)
		require.ErrorIs(t, err, ErrDropped)
		_, err = f.MakeRoom(t.Context(), p, f.Nodes()[0], nil)
		require.ErrorIs(t, err, ErrDropped)
	}
	_, _, err := f.Place(t.Context(), by(`device.attributes["gpu.nvidia.com"].productName.lowerAscii().matches("h100") && device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("40Gi")) > 0`))
	require.NoError(t, err)
}

// Classes and shipped selectors can be answered.
func TestClassesDoNotReadIdentities(t *testing.T) {
	for _, c := range DefaultClasses(pool.DefaultDriver) {
		require.False(t, readsIdentity(c.Spec.Selectors[0].CEL.Expression))
	}
}

func TestInternerSharesAndRepeats(t *testing.T) {
	i, s := NewInterner(), snapshot(t, "8xH100-SXM5-80GB", "8xH100-SXM5-80GB")
	for _, slice := range s.Slices {
		slice.ManagedFields, slice.Annotations = []metav1.ManagedFieldsEntry{{}}, map[string]string{"a": "b"}
	}
	transform(t, i, s.Slices)
	distinct, devices := map[uintptr]bool{}, devicesOf(s.Slices)
	for _, d := range devices {
		distinct[reflect.ValueOf(d.Attributes).Pointer()] = true
		require.Equal(t, "NVIDIA H100 80GB HBM3", *d.Attributes["productName"].StringValue)
	}
	require.LessOrEqual(t, len(distinct), 8*9, "one for each GPU of a node and type or profile")
	for _, slice := range s.Slices {
		require.Nil(t, slice.ManagedFields)
		require.NotContains(t, slice.Annotations, "a")
		again := slice.DeepCopy()
		transform(t, i, []*resourceapi.ResourceSlice{again})
		require.Equal(t, slice, again)
	}
}

func TestInternerKeepsOfPods(t *testing.T) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Labels: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{}},
			Annotations: map[string]string{"long": "text", corev1.PodDeletionCost: "5"}, OwnerReferences: []metav1.OwnerReference{{Name: "rs"}}},
		Spec: corev1.PodSpec{NodeName: "n", Volumes: []corev1.Volume{{Name: "v"}}, ResourceClaims: []corev1.PodResourceClaim{{Name: "gpu"}},
			Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "gpu"}}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "1.2.3.4", HostIP: "5.6.7.8"},
	}
	transform(t, NewInterner(), []*corev1.Pod{p})
	require.Equal(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Labels: map[string]string{"a": "b"},
			Annotations: map[string]string{corev1.PodDeletionCost: "5"}, OwnerReferences: []metav1.OwnerReference{{Name: "rs"}}},
		Spec: corev1.PodSpec{NodeName: "n", ResourceClaims: []corev1.PodResourceClaim{{Name: "gpu"}},
			Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "gpu"}}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "1.2.3.4"},
	}, p)

	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"a": "b"}},
		Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{}}}}
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": "b"}}}
	d := &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{}}, Annotations: map[string]string{"a": "b"}}}
	transform(t, NewInterner(), []any{n, c, d, "no object"})
	require.Equal(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}}, n)
	require.Equal(t, &resourceapi.ResourceClaim{}, c)
	require.Equal(t, &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": "b"}}}, d)
}
