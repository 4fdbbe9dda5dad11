package fleet

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/pool"
)

// What Publish makes up is what a plugin publishes of a simulated node that nobody
// has used, through the adapter, but for the UUIDs and the names made from them.
func TestPublishIsWhatANodePublishes(t *testing.T) {
	for _, x := range []struct{ boards, config, sim string }{
		{"8xH100-SXM5-80GB", "", ""},
		{"4xH200-SXM-141GB,2xL40S", "policies: [{timeSlicing: {replicas: 4}}]", ""},
		{"2xH100-NVL-94GB", "policies: [{mig: {mode: keepOn, mediaExtensions: true}}]", ",mig=on"},
		{"16xA10G", "policies: [{timeSlicing: {replicas: 8}}]", ""},
		{"8xA100-SXM4-80GB", "", ""},
		// kerf turns the mode on, and this node has had its reset.
		{"8xA100-SXM4-40GB", "policies: [{mig: {mode: keepOn}}]", ",mig=on"},
	} {
		t.Run(strings.ReplaceAll(x.boards, ",", " "), func(t *testing.T) {
			config, err := configv1alpha1.Parse([]byte("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\n" + x.config))
			require.NoError(t, err)
			spec, err := nvmlsim.Parse(x.boards + x.sim + ",state=" + t.TempDir())
			require.NoError(t, err)
			simulated, err := nvmlsim.Open(spec)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, simulated.Close()) })
			adapter := nvml.New(simulated.Interface(), nvml.WithHostRoot(simulated.HostRoot()))
			require.NoError(t, adapter.Open(t.Context()))
			t.Cleanup(func() { require.NoError(t, adapter.Close()) })
			found, err := adapter.Node(t.Context())
			require.NoError(t, err)

			n := pool.Node{Name: "gpu-1", Driver: pool.DefaultDriver, Node: found}
			offers := map[string]pool.Offer{}
			for _, g := range found.GPUs {
				offers[g.UUID] = pool.Desired(g, config.For(g.ProductName), nil)
			}
			resources, err := pool.Build(n, offers, nil)
			require.NoError(t, err)
			want, err := json.Marshal(pool.Slices(n, resources))
			require.NoError(t, err)

			boards, err := gpu.ParseBoards(x.boards)
			require.NoError(t, err)
			slices, err := Publish("gpu-1", pool.DefaultDriver, boards, config)
			require.NoError(t, err)
			got, err := json.Marshal(slices)
			require.NoError(t, err)

			// The n-th board has the UUID of the n-th, wherever it is written.
			var uuids []string
			for _, d := range devicesOf(slices) {
				if u := *d.Attributes["parentUUID"].StringValue; len(uuids) == 0 || uuids[len(uuids)-1] != u {
					uuids = append(uuids, u)
				}
			}
			require.Len(t, uuids, len(found.GPUs))
			text := string(got)
			for i, g := range found.GPUs {
				text = strings.ReplaceAll(text, uuids[i], g.UUID)
				text = strings.ReplaceAll(text, shortName(uuids[i]), shortName(g.UUID))
			}
			require.Equal(t, string(want), text)
		})
	}
}

func shortName(uuid string) string { return gpu.NewNames([]string{uuid}).GPU(uuid) }

func TestPublishRefuses(t *testing.T) {
	config, err := configv1alpha1.Parse([]byte("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\npolicies: [{timeSlicing: {replicas: 8}}]"))
	require.NoError(t, err)
	slices, err := Publish("n", "gpu.kerf.dev", nil, config)
	require.NoError(t, err)
	require.Len(t, slices, 1, "a node without boards says so")
	require.Empty(t, slices[0].Spec.Devices)
}
