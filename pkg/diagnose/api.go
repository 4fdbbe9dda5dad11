package diagnose

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"

	"github.com/kerf-project/kerf/pkg/journal"
)

// api is what the API server says. What it did not say is nil.
type api struct {
	server *version.Info
	node   *corev1.Node
	// slices are those of this driver and node; asked is false where they are not known.
	slices []resourceapi.ResourceSlice
	// claims are all of the cluster, by UID.
	claims map[string]resourceapi.ResourceClaim
	asked  bool
}

func (f *facts) askAPI(ctx context.Context) {
	switch {
	case f.Client == nil:
		f.skip("the API server: %s", f.NoClient)
		return
	case f.NodeName == "":
		f.skip("the API server: the node's name is not known: --node-name, or the variable NODE_NAME")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	if err := f.readAPI(ctx); err != nil {
		f.api.asked = false
		f.skip("the API server: %v", err)
	}
}

func (f *facts) readAPI(ctx context.Context) error {
	var err error
	if f.api.server, err = discovery.ToServerVersionInterfaceWithContext(f.Client.Discovery()).ServerVersionWithContext(ctx); err != nil {
		return fmt.Errorf("ask for its version: %w", err)
	}
	if f.api.node, err = f.Client.CoreV1().Nodes().Get(ctx, f.NodeName, metav1.GetOptions{}); err != nil {
		return fmt.Errorf("read node %s: %w", f.NodeName, err)
	}
	published, err := f.Client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{FieldSelector: fields.Set{
		resourceapi.ResourceSliceSelectorNodeName: f.NodeName, resourceapi.ResourceSliceSelectorDriver: f.Driver,
	}.String()})
	if err != nil {
		return fmt.Errorf("list the slices of the node: %w", err)
	}
	claims, err := f.Client.ResourceV1().ResourceClaims(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("list the claims: %w", err)
	}
	f.api.slices, f.api.claims, f.api.asked = published.Items, map[string]resourceapi.ResourceClaim{}, true
	for _, c := range claims.Items {
		f.api.claims[string(c.UID)] = c
	}
	return nil
}

// results are the devices of this driver and node that a claim is allocated.
func (f *facts) results(c resourceapi.ResourceClaim) []resourceapi.DeviceRequestAllocationResult {
	if c.Status.Allocation == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(c.Status.Allocation.Devices.Results), func(r resourceapi.DeviceRequestAllocationResult) bool {
		return r.Driver != f.Driver || r.Pool != f.NodeName
	})
}

// joinClaims makes one list of the records and of what the API allocates here.
func (f *facts) joinClaims() {
	f.claims = []Claim{}
	for _, r := range f.records.Claims {
		c := Claim{Namespace: r.Namespace, Name: r.Name, UID: r.UID, Record: r.State}
		for _, d := range r.Devices {
			c.Devices = append(c.Devices, d.Name)
		}
		if f.api.asked {
			c.State = stateGone
			if known, ok := f.api.claims[r.UID]; ok {
				c.State, c.Pods = f.state(known, r.State), podsOf(known)
			}
		}
		f.claims = append(f.claims, c)
	}
	for uid, known := range f.api.claims {
		results := f.results(known)
		if len(results) == 0 || f.claimRecord(uid) != nil {
			continue
		}
		c := Claim{Namespace: known.Namespace, Name: known.Name, UID: uid, State: f.state(known, ""), Pods: podsOf(known)}
		for _, r := range results {
			c.Devices = append(c.Devices, r.Device)
		}
		f.claims = append(f.claims, c)
	}
	slices.SortFunc(f.claims, func(a, b Claim) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
}

// state derives a claim's state from its status, and from the record where the
// status does not say yet that it is prepared.
func (f *facts) state(c resourceapi.ResourceClaim, record journal.ClaimState) string {
	prepared := record == journal.ClaimPrepared
	for _, d := range c.Status.Devices {
		if d.Driver == f.Driver && d.Pool == f.NodeName && meta.IsStatusConditionTrue(d.Conditions, "Ready") {
			prepared = true
		}
	}
	switch {
	case c.Status.Allocation == nil:
		return statePending
	case len(c.Status.ReservedFor) == 0:
		return stateAllocated
	case prepared:
		return stateInUse
	default:
		return stateReserved
	}
}

func podsOf(c resourceapi.ResourceClaim) []string {
	var pods []string
	for _, consumer := range c.Status.ReservedFor {
		if consumer.Resource == "pods" {
			pods = append(pods, consumer.Name)
		}
	}
	return pods
}
