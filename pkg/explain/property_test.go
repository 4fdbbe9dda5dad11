package explain

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

var (
	seed     = flag.Uint64("explain.seed", 0, "replay the refusal of this seed alone")
	refusals = flag.Int("explain.refusals", 560, "how many refusals are made")
)

// cluster is a random cluster with a pod whose claims fit somewhere, until a mutation.
type cluster struct {
	*rand.Rand
	fleet.Snapshot
	pod fleet.Pod
	// fit are the nodes on which the claims fit before the mutation.
	fit []string
	// search bounds the allocator if it is not 0.
	search int
}

// mutation makes claims that fit be refused.
type mutation struct {
	name string
	// do changes the cluster, and says what explain has to name on the nodes where the
	// claims were to fit, and what undoes what it names. It is not ok with a cluster that cannot be
	// mutated in this way.
	do func(t *testing.T, c *cluster) (named func(Cause) bool, undo func(*cluster, *Report) bool, ok bool)
}

func (c *cluster) fleet() *fleet.Fleet {
	f := fleet.New(c.Snapshot)
	if f.Search = c.search; c.search == 0 {
		f.Search = 5_000
	}
	return f
}

// fits are the nodes on which the claims fit, by the allocator alone.
func (c *cluster) fits(t *testing.T) []string {
	var all []string
	f := c.fleet()
	for _, n := range f.Nodes() {
		if c.pod.Excluded(n) != "" {
			continue
		}
		_, err := f.Allocate(t.Context(), n, c.pod.Pending()...)
		if err == nil {
			all = append(all, n.Name)
		} else if !errors.Is(err, fleet.ErrNoFit) && !errors.Is(err, fleet.ErrSearch) {
			return nil // It ends the attempt.
		}
	}
	return all
}

const anyClass = "any.example.com"

func profileClass(p string) string { return "mig-" + p + ".gpu.nvidia.com" }

// random makes a cluster of one to three nodes with up to three boards each, some
// of them in use.
func random(t *testing.T, r *rand.Rand) *cluster {
	c := &cluster{Rand: r}
	c.Classes = append(fleet.DefaultClasses(pool.DefaultDriver), &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: anyClass}})
	models := []string{"H100-SXM5-80GB", "H100-SXM5-80GB", "A100-SXM4-80GB", "L40S"}
	config := &configv1alpha1.NodeConfiguration{Policies: []configv1alpha1.Policy{
		{Products: []string{"*A100*"}, MIG: configv1alpha1.MIG{Mode: configv1alpha1.MIGKeepOn}},
		{MIG: configv1alpha1.MIG{Mode: configv1alpha1.MIGOnDemand}, TimeSlicing: configv1alpha1.TimeSlicing{Replicas: r.IntN(3)}},
	}}
	for n := range 1 + r.IntN(3) {
		text := fmt.Sprintf("%dx%s", 1+r.IntN(3), models[r.IntN(len(models))])
		if r.IntN(4) == 0 {
			text += ",L40S"
		}
		boards, err := gpu.ParseBoards(text)
		require.NoError(t, err)
		slices, err := fleet.Publish(fmt.Sprintf("node-%d", n), pool.DefaultDriver, boards, config)
		require.NoError(t, err)
		c.Slices = append(c.Slices, slices...)
		c.Nodes = append(c.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", n), Labels: map[string]string{"zone": "a"}}})
	}
	f := fleet.New(c.Snapshot)
	for i := range r.IntN(12) {
		c.take(t, f, c.claim(fmt.Sprintf("other-%d", i)))
	}
	return c
}

// take allocates a claim if it fits, and lets the cluster have it.
func (c *cluster) take(t *testing.T, f *fleet.Fleet, claim *resourceapi.ResourceClaim) bool {
	_, placed, err := f.Place(t.Context(), fleet.Pod{Claims: []*resourceapi.ResourceClaim{claim}})
	if err != nil {
		return false
	}
	c.Claims = append(c.Claims, placed...)
	return true
}

func (c *cluster) pick(all ...string) string { return all[c.IntN(len(all))] }

func (c *cluster) exactly(class string) *resourceapi.ExactDeviceRequest {
	return &resourceapi.ExactDeviceRequest{DeviceClassName: class, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1}
}

func (c *cluster) class() string {
	return c.pick(profileClass("1g.10gb"), profileClass("2g.20gb"), profileClass("3g.40gb"), profileClass("4g.40gb"), profileClass("7g.80gb"),
		"mig.nvidia.com", "gpu.nvidia.com", "timeslice.gpu.nvidia.com")
}

// claim asks for a device, mostly, or for some, or for one of several kinds.
func (c *cluster) claim(name string) *resourceapi.ResourceClaim {
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "team"}}
	devices := &claim.Spec.Devices
	first := resourceapi.DeviceRequest{Name: "first", Exactly: c.exactly(c.class())}
	switch c.IntN(8) {
	case 0:
		first.Exactly.Count = int64(1 + c.IntN(3))
	case 1:
		first.Exactly = nil
		for i, class := range []string{c.class(), c.class()} {
			first.FirstAvailable = append(first.FirstAvailable, resourceapi.DeviceSubRequest{
				Name: fmt.Sprintf("alternative-%d", i), DeviceClassName: class, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1,
			})
		}
	case 2:
		devices.Requests = append(devices.Requests, resourceapi.DeviceRequest{Name: "second", Exactly: c.exactly(c.class())})
	case 3:
		first.Exactly = c.exactly(profileClass("1g.10gb"))
		devices.Requests = append(devices.Requests, resourceapi.DeviceRequest{Name: "second", Exactly: c.exactly(profileClass("2g.20gb"))})
		parent := resourceapi.FullyQualifiedName("gpu.nvidia.com/parentUUID")
		devices.Constraints = append(devices.Constraints, resourceapi.DeviceConstraint{MatchAttribute: &parent})
	case 4:
		first.Exactly = c.exactly("mig.nvidia.com")
		first.Exactly.Selectors = []resourceapi.DeviceSelector{cel(`device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("30Gi")) >= 0`)}
	}
	devices.Requests = append([]resourceapi.DeviceRequest{first}, devices.Requests...)
	return claim
}

func cel(expression string) resourceapi.DeviceSelector {
	return resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{Expression: expression}}
}

// exact returns a request that is no list of alternatives.
func (c *cluster) exact() (*resourceapi.DeviceRequest, bool) {
	claim := c.pod.Claims[0]
	for i := range claim.Spec.Devices.Requests {
		if r := &claim.Spec.Devices.Requests[i]; r.Exactly != nil {
			return r, true
		}
	}
	return nil, false
}

// TestRefusals makes refusals by random mutation of clusters in which claims fit.
// The mutation must be among the named causes on every node where the claims would
// fit without it, undoing what is named must make them fit, and so must every
// single cure that is proposed.
func TestRefusals(t *testing.T) {
	made, first := map[string]int{}, 0
	total := 0
	for s := uint64(1); total < *refusals; s++ {
		if *seed > 0 {
			s = *seed
		}
		m := mutations[s%uint64(len(mutations))]
		ok, isFirst := refusal(t, s, m)
		if ok {
			made[m.name]++
			total++
		}
		if isFirst {
			first++
		}
		if *seed > 0 {
			require.True(t, ok, "seed %d makes no refusal", s)
			return
		}
	}
	for _, m := range mutations {
		require.GreaterOrEqual(t, made[m.name], 10, m.name)
		t.Logf("%-22s %d", m.name, made[m.name])
	}
	t.Logf("%d refusals, all with the mutation among the causes (100 %%), in %.1f %% as the first", total, 100*float64(first)/float64(total))
}

func refusal(t *testing.T, s uint64, m mutation) (made, first bool) {
	r := rand.New(rand.NewPCG(s, 4))
	c := random(t, r)
	c.pod = fleet.Pod{Claims: []*resourceapi.ResourceClaim{c.claim("wanted")}}
	if c.fit = c.fits(t); len(c.fit) == 0 {
		return false, false
	}
	named, undo, ok := m.do(t, c)
	if !ok || len(c.fits(t)) > 0 {
		return false, false
	}
	replay := fmt.Sprintf("%s: replay with -run TestRefusals -explain.seed=%d", m.name, s)
	report, err := Explain(t.Context(), c.fleet(), c.pod, Options{})
	require.NoError(t, err, replay)
	require.False(t, report.Fits, replay)
	first = true
	for _, n := range report.Nodes {
		require.Equal(t, n.Fits, n.Why == "", replay)
		if !slices.Contains(c.fit, n.Name) {
			continue
		}
		require.True(t, slices.ContainsFunc(n.Causes, named), "%s\nnode %s: %+v", replay, n.Name, n.Causes)
		first = first && named(n.Causes[0])
	}
	for _, cure := range report.Cures {
		changed := cured(c, cure)
		require.Contains(t, changed.fits(t), cure.Node, "%s\ncure %s", replay, cure.text())
	}
	require.True(t, undo(c, report), replay)
	require.NotEmpty(t, c.fits(t), "%s\nundoing what is named does not make it fit", replay)
	return true, first
}

// cured applies the parts of a cure, by other means than explain does.
func cured(c *cluster, cure Cure) *cluster {
	changed := *c
	changed.pod.Claims = nil
	for _, claim := range c.pod.Claims {
		changed.pod.Claims = append(changed.pod.Claims, claim.DeepCopy())
	}
	for _, change := range cure.Changes {
		switch change.Kind {
		case Evict:
			changed.Claims = slices.DeleteFunc(slices.Clone(changed.Claims), func(o *resourceapi.ResourceClaim) bool { return slices.Contains(change.Evict, fleet.Key(o)) })
		case DropConstraint:
			constraints := &changed.pod.Claims[0].Spec.Devices.Constraints
			*constraints = slices.Delete(*constraints, change.Index, change.Index+1)
		case Reorder:
			requests := changed.pod.Claims[0].Spec.Devices.Requests
			slices.SortFunc(requests, func(a, b resourceapi.DeviceRequest) int {
				return slices.Index(change.Order, "team/wanted "+a.Name) - slices.Index(change.Order, "team/wanted "+b.Name)
			})
		default:
			for _, r := range fleet.Requests(changed.pod.Claims) {
				if r.Name == change.Request {
					changeRequest(changed.pod.Claims[0], r, change)
				}
			}
		}
	}
	return &changed
}

func changeRequest(claim *resourceapi.ResourceClaim, r fleet.Request, change Change) {
	request := &claim.Spec.Devices.Requests[r.Index]
	var selectors *[]resourceapi.DeviceSelector
	var tolerations *[]resourceapi.DeviceToleration
	var count *int64
	if request.Exactly != nil {
		selectors, tolerations, count = &request.Exactly.Selectors, &request.Exactly.Tolerations, &request.Exactly.Count
	} else {
		alternative := &request.FirstAvailable[r.Alternative]
		selectors, tolerations, count = &alternative.Selectors, &alternative.Tolerations, &alternative.Count
	}
	switch change.Kind {
	case Tolerate:
		*tolerations = append(*tolerations, resourceapi.DeviceToleration{Key: change.Taint.Key, Operator: resourceapi.DeviceTolerationOpExists})
	case DropSelector:
		*selectors = slices.Delete(*selectors, change.Index, change.Index+1)
	case GuardSelector:
		(*selectors)[change.Index] = cel(change.Expression)
	case LowerCount:
		*count = change.Count
	}
}
