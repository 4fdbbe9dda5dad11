package simulate

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/pool"
)

func defaultClasses() []*resourceapi.DeviceClass { return fleet.DefaultClasses(pool.DefaultDriver) }

const oneH100 = `
apiVersion: config.kerf.dev/v1alpha1
kind: Fleet
nodes: [{name: node-a, boards: H100-SXM5-80GB}]
---
` + templates

const templates = `
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: small}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: mig-1g.10gb.gpu.nvidia.com}}]}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: half, namespace: team}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: mig-4g.40gb.gpu.nvidia.com}}]}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: whole}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu.nvidia.com}}]}}}
`

func input(t *testing.T, manifests, trace string) *Input {
	t.Helper()
	in := &Input{}
	in.Classes = defaultClasses()
	require.NoError(t, in.Read(strings.NewReader(manifests)))
	if trace != "" {
		require.NoError(t, in.ReadTrace(strings.NewReader("at,duration,template\n"+trace)))
	}
	return in
}

func run(t *testing.T, in *Input) *Result {
	t.Helper()
	r, err := Run(t.Context(), in, LeastBlocking, nil)
	require.NoError(t, err)
	return r
}

// What waits is tried again when something leaves, the first that came first, and a
// later one passes it only if it fits where the first does not.
func TestWaiting(t *testing.T) {
	r := run(t, input(t, oneH100, "0,10,team/half\n0,30,small\n5,20,whole\n6,5,team/half\n7,,small\n100,1,whole\n"))
	type outcome struct{ placed, ended Seconds }
	var got []outcome
	for _, j := range r.Jobs {
		o := outcome{-1, -1}
		if j.Placed != nil {
			o.placed = *j.Placed
		}
		if j.Ended != nil {
			o.ended = *j.Ended
		}
		got = append(got, o)
	}
	require.Equal(t, []outcome{{0, 10}, {0, 30}, {-1, -1}, {10, 15}, {7, -1}, {-1, -1}}, got)
	require.Equal(t, Summary{
		Jobs: 6, AtOnce: 3, Waited: 1, Never: 2, LongestWait: 4, PeakUsed: 6, PeakStranded: r.Summary.PeakStranded,
		MeanUsed: r.Summary.MeanUsed, MeanStranded: r.Summary.MeanStranded,
	}, r.Summary)
	require.InDelta(t, (7*5+3*6+5*6+15*2+70*1)/100.0, r.Summary.MeanUsed, 1e-9)
	require.Len(t, r.Refusals, 2, "one for each workload")
	require.Equal(t, "default/whole-2", r.Refusals[0].Job)
	require.Contains(t, r.Refusals[0].Why[0], "on 1 node: gpu: 19 devices, 1 of class gpu.nvidia.com, 0 free")
	require.False(t, Report{[]*Result{r}}.Fits())
}

// A slice is stranded if it is free and nothing that is asked for can cover it.
func TestStranded(t *testing.T) {
	last := func(trace string) Point {
		points := run(t, input(t, oneH100, trace)).Timeline
		return points[len(points)-1]
	}
	require.Equal(t, Point{0, 1, 1, 1}, last("0,,small\n0,,whole\n"), "small ones can have six others, but nothing covers the eighth alone")
	require.Equal(t, Point{0, 4, 4, 0}, last("0,,team/half\n"), "the second half is no place for a 4g")
	require.Equal(t, Point{0, 5, 1, 0}, last("0,,team/half\n0,,small\n"))
}

// Boards without MIG are one slice, which replicas share.
func TestSharedBoards(t *testing.T) {
	in := input(t, `
apiVersion: config.kerf.dev/v1alpha1
kind: Fleet
nodes: [{name: node-a, boards: 2xL40S, config: {policies: [{timeSlicing: {replicas: 2}}]}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec: {replicas: 3, template: {spec: {containers: [{name: c, resources: {limits: {nvidia.com/gpu.shared: 1}}}]}}}
`, "")
	r := run(t, in)
	require.Equal(t, 2, r.Slices)
	require.Equal(t, 3, r.Summary.AtOnce)
	require.Equal(t, 2, r.Summary.PeakUsed)
	require.True(t, Report{[]*Result{r}}.Fits())
	require.Equal(t, []Workload{{Name: "Deployment default/d", Jobs: 3, AtOnce: 3, Nodes: "node-a (3)"}}, r.Workloads())
}

// Pods that name one claim share its devices, on one node.
func TestSharedClaim(t *testing.T) {
	r := run(t, input(t, oneH100+`
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: shared}
spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu.nvidia.com}}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: j}
spec: {parallelism: 3, template: {spec: {containers: [], resourceClaims: [{name: gpu, resourceClaimName: shared}]}}}
`, ""))
	require.Equal(t, 3, r.Summary.AtOnce)
	require.Len(t, r.Jobs[0].Devices, 1)
	require.Empty(t, r.Jobs[1].Devices)
	require.Equal(t, 8, r.Summary.PeakUsed)
}

// The order of publication is the order in which placements are taken.
func TestOrders(t *testing.T) {
	for order, want := range map[Order]string{LeastBlocking: "-6", Ascending: "-0", Descending: "-6"} {
		in := input(t, oneH100, "0,,small\n0,,small\n")
		r, err := Run(t.Context(), in, order, nil)
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(r.Jobs[0].Devices[0], want), "%s: %s", order, r.Jobs[0].Devices[0])
		second := map[Order]string{LeastBlocking: "-4", Ascending: "-1", Descending: "-5"}[order]
		require.True(t, strings.HasSuffix(r.Jobs[1].Devices[0], second), "%s: %s", order, r.Jobs[1].Devices[0])
	}
	_, err := ParseOrder("random")
	require.ErrorContains(t, err, "least-blocking")
}

func TestRefusalsSayWhy(t *testing.T) {
	r := run(t, input(t, oneH100+`
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: broken}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: no-such-class}}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere}
spec: {nodeSelector: {zone: b}, containers: [], resourceClaims: [{name: gpu, resourceClaimTemplateName: small}]}
`, "0,,broken\n"))
	require.Equal(t, []string{"on 1 node: its labels do not match the pod's node selector or affinity"}, r.Refusals[0].Why)
	require.Contains(t, r.Refusals[1].Why[0], "no-such-class")
}

func TestBadInput(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "EOF",
		"at,template\n":                       "wrong number of fields",
		"a,b,c\n":                             "at,duration,template",
		"at,duration,template\nsoon,,small\n": "line 2: at",
		"at,duration,template\n0,-1s,small\n": "line 2: duration: -1s is below 0",
		"at,duration,template\n0,1\n":         "wrong number of fields",
	} {
		require.ErrorContains(t, (&Input{}).ReadTrace(strings.NewReader(text)), want, text)
	}
	require.ErrorContains(t, (&Input{}).Read(strings.NewReader("apiVersion: config.kerf.dev/v1alpha1\nkind: Fleet\nnodes: [{name: a, boards: x}]\n")), "boards")

	_, err := Run(t.Context(), input(t, oneH100, "0,,missing\n"), LeastBlocking, nil)
	require.ErrorContains(t, err, "no ResourceClaimTemplate default/missing")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, input(t, oneH100, "0,,small\n"), LeastBlocking, nil)
	require.ErrorIs(t, err, context.Canceled)
}

// A long timeline is drawn with fewer points, and its end is the end.
func TestChart(t *testing.T) {
	r := &Result{Slices: 10}
	for i := range 5000 {
		r.Timeline = append(r.Timeline, Point{At: Seconds(i), Used: i % 10, Waiting: i % 3})
	}
	c := r.Chart()
	require.LessOrEqual(t, strings.Count(c.Used, ","), 2*chartPoints+2)
	require.Equal(t, Seconds(4999), c.End)
	require.Equal(t, 2, c.MostWaiting)
	once := (&Result{Slices: 8, Timeline: []Point{{Used: 4}}}).Chart()
	require.Equal(t, "0,200 0.0,100.0 1000.0,100.0 1000,200", once.Used)
	require.Empty(t, once.Waiting)
	require.Empty(t, (&Result{}).Chart().Used)
}
