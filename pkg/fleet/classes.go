package fleet

import (
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// DefaultClasses are the device classes that the chart installs, for a driver of
// that name; a test of the chart compares the two.
func DefaultClasses(driver string) []*resourceapi.DeviceClass {
	const attribute = `device.attributes["` + pool.DefaultDriver + `"]`
	class := func(name, resource, expression string) *resourceapi.DeviceClass {
		c := &resourceapi.DeviceClass{
			TypeMeta:   metav1.TypeMeta{APIVersion: resourceapi.SchemeGroupVersion.String(), Kind: "DeviceClass"},
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: resourceapi.DeviceClassSpec{Selectors: []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{
				Expression: fmt.Sprintf("device.driver == %q && %s", driver, expression),
			}}}},
		}
		if resource != "" {
			c.Spec.ExtendedResourceName = &resource
		}
		return c
	}
	all := []*resourceapi.DeviceClass{
		class("gpu.nvidia.com", "nvidia.com/gpu", attribute+`.type == "gpu"`),
		class("mig.nvidia.com", "", attribute+`.type == "mig"`),
		class("timeslice.gpu.nvidia.com", "nvidia.com/gpu.shared", attribute+`.type == "timeslice"`),
	}
	var profiles []string
	for _, b := range gpu.Boards() {
		for _, p := range b.Profiles {
			profiles = append(profiles, p.Name)
		}
	}
	slices.Sort(profiles)
	for _, p := range slices.Compact(profiles) {
		name := "mig-" + strings.ReplaceAll(p, "+", ".")
		all = append(all, class(name+".gpu.nvidia.com", "nvidia.com/"+name, fmt.Sprintf(`%s.type == "mig" && %s.profile == %q`, attribute, attribute, p)))
	}
	return all
}
