package explain

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// ask explains the claim team/wanted, or the pod of that name, on a node of those boards.
func ask(t *testing.T, boards, manifests string) *Report {
	t.Helper()
	o := &fleet.Objects{}
	o.Classes = fleet.DefaultClasses(pool.DefaultDriver)
	require.NoError(t, o.Read(strings.NewReader(manifests)))
	parsed, err := gpu.ParseBoards(boards)
	require.NoError(t, err)
	slices, err := fleet.Publish("node-0", pool.DefaultDriver, parsed, nil)
	require.NoError(t, err)
	o.Slices = append(o.Slices, slices...)
	pod, err := o.Find("team", "wanted")
	require.NoError(t, err)
	r, err := Explain(t.Context(), fleet.New(o.Snapshot), pod, Options{})
	require.NoError(t, err)
	return r
}

// device is the name of the n-th board of node-0, and more.
func device(t *testing.T, boards string, more string) string {
	t.Helper()
	parsed, err := gpu.ParseBoards(boards)
	require.NoError(t, err)
	slices, err := fleet.Publish("node-0", pool.DefaultDriver, parsed, nil)
	require.NoError(t, err)
	return slices[1].Spec.Devices[0].Name + more
}

func wanted(requests string) string {
	return "apiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {name: wanted, namespace: team}\nspec: {devices: {requests: [" + requests + "]}}\n"
}

func holds(name, device string) string {
	return "---\napiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {name: " + name + ", namespace: team}\n" +
		"status: {allocation: {devices: {results: [{request: r, driver: gpu.nvidia.com, pool: node-0, device: " + device + "}]}}}\n"
}

func texts(r *Report) string {
	var out strings.Builder
	_ = r.WriteText(&out)
	return out.String()
}

func kinds(n Node) []Kind {
	var all []Kind
	for _, c := range n.Causes {
		all = append(all, c.Kind)
	}
	return all
}

// A taint and a claim in the way of the only board are to be undone together.
func TestJointCauses(t *testing.T) {
	taint := "---\napiVersion: resource.k8s.io/v1\nkind: DeviceTaintRule\nmetadata: {name: t}\nspec: {deviceSelector: {}, taint: {key: drain, effect: NoSchedule}}\n"
	r := ask(t, "L40S", wanted("{name: gpu, exactly: {deviceClassName: gpu.nvidia.com}}")+holds("other", device(t, "L40S", ""))+taint)
	require.ElementsMatch(t, []Kind{Tainted, InUse}, kinds(r.Nodes[0]))
	require.True(t, r.Nodes[0].Causes[0].Joint)
	require.Len(t, r.Cures, 1)
	require.Len(t, r.Cures[0].Changes, 2)
	require.Contains(t, texts(r), "let request gpu of claim team/wanted tolerate drain:NoSchedule, and end claim team/other")
}

func TestAlternatives(t *testing.T) {
	r := ask(t, "H100-SXM5-80GB", wanted("{name: gpu, firstAvailable: [{name: big, deviceClassName: mig-7g.80gb.gpu.nvidia.com}, {name: old, deviceClassName: mig-1g.5gb.gpu.nvidia.com}]}")+
		holds("other", device(t, "H100-SXM5-80GB", "-mig-1g10gb-6")))
	require.ElementsMatch(t, []Kind{InUse, NoMatch}, kinds(r.Nodes[0]))
	require.Equal(t, "gpu/big", r.Nodes[0].Causes[0].Request)
	require.Equal(t, "gpu/old", r.Nodes[0].Causes[1].Request)
	require.Equal(t, []string{"team/other"}, r.Cures[0].Changes[0].Evict)
}

// Every device that matches is wanted, so each claim in the way is.
func TestAllDevices(t *testing.T) {
	r := ask(t, "2xL40S", wanted("{name: gpu, exactly: {deviceClassName: gpu.nvidia.com, allocationMode: All}}")+holds("other", device(t, "2xL40S", "")))
	require.Equal(t, []Kind{InUse}, kinds(r.Nodes[0]))
	require.Contains(t, texts(r), "all needed")
	require.Equal(t, []string{"team/other"}, r.Cures[0].Changes[0].Evict)
}

func TestCapacity(t *testing.T) {
	r := ask(t, "L40S", `
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: s}
spec:
  driver: shared.example.com
  nodeName: node-0
  pool: {name: node-0, resourceSliceCount: 1}
  devices: [{name: shared, allowMultipleAllocations: true, capacity: {memory: {value: 10Gi}}}]
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: shared}
spec: {selectors: [{cel: {expression: device.driver == "shared.example.com"}}]}
---
`+wanted("{name: gpu, exactly: {deviceClassName: shared, capacity: {requests: {memory: 20Gi}}}}"))
	require.Equal(t, []Kind{Capacity}, kinds(r.Nodes[0]))
	require.Contains(t, r.Nodes[0].Why, "no device has 20Gi of memory left")
	require.Empty(t, r.Cures, "nobody else's to give")
}

// What fits alone and not at once, with nobody else to blame.
func TestTogether(t *testing.T) {
	r := ask(t, "H100-SXM5-80GB", wanted("{name: a, exactly: {deviceClassName: mig-1g.10gb.gpu.nvidia.com}}, {name: b, exactly: {deviceClassName: mig-4g.40gb.gpu.nvidia.com}}, {name: c, exactly: {deviceClassName: mig-4g.40gb.gpu.nvidia.com}}"))
	require.Equal(t, []Kind{Together}, kinds(r.Nodes[0]))
	require.Equal(t, "team/wanted b, team/wanted c", r.Nodes[0].Causes[0].Subject)
}

// Some claims are allocated, some fit, some are of a pod that is made of templates.
func TestFits(t *testing.T) {
	r := ask(t, "L40S", holds("wanted", device(t, "L40S", "")))
	require.True(t, r.Fits && r.Allocated)
	require.Contains(t, texts(r), "claim team/wanted: allocated.")

	r = ask(t, "L40S", "apiVersion: v1\nkind: Pod\nmetadata: {name: wanted, namespace: team}\nspec: {containers: [{name: c, resources: {limits: {nvidia.com/gpu: 1}}}]}\n")
	require.True(t, r.Fits)
	require.Equal(t, []Device{{"team/wanted-extended-resources", "container-0-request-0", "node-0", device(t, "L40S", "")}}, r.Devices)
	require.Contains(t, texts(r), "fits on node node-0")

	require.Contains(t, texts(&Report{Claims: []string{"a", "b"}}), "claims a, b do not fit: there are no nodes")
}

// A search in vain for as long as the scheduler lets it is worth a hint, though not its cause.
func TestSlowSearchIsHinted(t *testing.T) {
	small := "{name: s%, exactly: {deviceClassName: mig-1g.10gb.gpu.nvidia.com}}, "
	var requests strings.Builder
	for _, n := range []string{"0", "1", "2", "3"} {
		requests.WriteString(strings.Replace(small, "%", n, 1))
	}
	r := ask(t, "8xH100-SXM5-80GB", wanted(requests.String()+"{name: big, exactly: {deviceClassName: mig-7g.141gb.gpu.nvidia.com}}"))
	require.Equal(t, []Kind{NoMatch}, kinds(r.Nodes[0]))
	require.Len(t, r.Hints, 1)
	require.Contains(t, r.Hints[0], "ask for the scarcest first: team/wanted big, team/wanted s0")
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := &fleet.Objects{}
	o.Classes = fleet.DefaultClasses(pool.DefaultDriver)
	require.NoError(t, o.Read(strings.NewReader(wanted("{name: gpu, exactly: {deviceClassName: gpu.nvidia.com}}"))))
	boards, err := gpu.ParseBoards("L40S")
	require.NoError(t, err)
	o.Slices, err = fleet.Publish("node-0", pool.DefaultDriver, boards, nil)
	require.NoError(t, err)
	_, err = Explain(ctx, fleet.New(o.Snapshot), fleet.Pod{Claims: o.Claims}, Options{})
	require.ErrorIs(t, err, context.Canceled)
}
