//go:build e2e

package e2e

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// offer is one kind of device that a node offers: the class by which it is claimed, and on a node with several boards
// the product that is meant.
type offer struct{ class, product string }

// shapes are nodes as clouds have them, with fewer boards, and all kinds of devices that they offer.
var shapes = []struct {
	shape  kit.Shape
	types  []string
	offers []offer
}{
	{kit.Shape{Name: "g5", Boards: "1xA10G", Replicas: 2}, []string{"gpu", "timeslice"}, []offer{{class: wholeClass}, {class: timesliceClass}}},
	{kit.Shape{Name: "g6e", Boards: "1xL40S", Replicas: 2}, []string{"gpu", "timeslice"}, []offer{{class: wholeClass}, {class: timesliceClass}}},
	// A change of the mode takes a reset here, so what these boards offer is by the mode that they are in.
	{kit.Shape{Name: "p4d", Boards: "2xA100-SXM4-40GB,mig=off", Replicas: 2}, []string{"gpu", "timeslice"}, []offer{{class: wholeClass}, {class: timesliceClass}}},
	{kit.Shape{Name: "p4d-mig", Boards: "2xA100-SXM4-40GB,mig=on", Replicas: 2}, []string{"mig"}, []offer{{class: "mig-1g.5gb.gpu.nvidia.com"}, {class: "mig-7g.40gb.gpu.nvidia.com"}}},
	{
		kit.Shape{Name: "p5", Boards: "2xH100-SXM5-80GB", Replicas: 2}, []string{"gpu", "mig", "timeslice"},
		[]offer{{class: wholeClass}, {class: "mig-1g.10gb.gpu.nvidia.com"}, {class: timesliceClass}},
	},
	{
		kit.Shape{Name: "p5e", Boards: "2xH200-SXM-141GB", Replicas: 2}, []string{"gpu", "mig", "timeslice"},
		[]offer{{class: wholeClass}, {class: "mig-1g.18gb.gpu.nvidia.com"}, {class: timesliceClass}},
	},
	{
		kit.Shape{Name: "mixed", Boards: "2xH200-SXM-141GB,1xL40S", Replicas: 2}, []string{"gpu", "mig", "timeslice"},
		[]offer{
			{wholeClass, "NVIDIA H200"}, {"mig-1g.18gb.gpu.nvidia.com", "NVIDIA H200"}, {timesliceClass, "NVIDIA H200"},
			{wholeClass, "NVIDIA L40S"}, {timesliceClass, "NVIDIA L40S"},
		},
	},
}

// Every shape of node runs a claim of each kind that it offers, and offers no other.
func TestShapes(t *testing.T) {
	for _, test := range shapes {
		t.Run(test.shape.Name, func(t *testing.T) {
			e := kit.New(t, test.shape)
			published, err := e.Slices(t.Context())
			require.NoError(t, err)
			types := sets.New[string]()
			for _, s := range published {
				for _, d := range s.Spec.Devices {
					types.Insert(*d.Attributes["type"].StringValue)
				}
			}
			require.Equal(t, test.types, sets.List(types))
			for i, offer := range test.offers {
				spec := kit.Requests(offer.class)
				if offer.product != "" {
					spec = kit.OfProduct(spec, offer.product)
				}
				name := fmt.Sprintf("pod-%d", i)
				e.Pod(name, spec)
				pods := e.Running(name)
				require.NoError(t, e.Verify(pods[0]), "%+v", offer)
				e.Delete(pods...)
			}
		})
	}
}
