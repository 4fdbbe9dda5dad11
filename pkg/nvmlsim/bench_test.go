package nvmlsim

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// BenchmarkInstance is what the simulation itself costs of one GPU instance with
// a compute instance, made and destroyed, on a node of eight boards.
func BenchmarkInstance(b *testing.B) {
	d := handle(b, newNode(b, "8xH100-SXM5-80GB,mig=on"), 3)
	for b.Loop() {
		gi, ci := create(b, d, g1, 3)
		if ci.Destroy() != nvml.SUCCESS || gi.Destroy() != nvml.SUCCESS {
			b.Fatal("not destroyed")
		}
	}
}

func BenchmarkRead(b *testing.B) {
	d := handle(b, newNode(b, "8xH100-SXM5-80GB,mig=on"), 3)
	for b.Loop() {
		if _, ret := d.GetUUID(); ret != nvml.SUCCESS {
			b.Fatal(ret)
		}
	}
}
