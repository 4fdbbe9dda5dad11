package diagnose

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

func nodeWithRuntime(version string) *corev1.Node {
	return &corev1.Node{Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{ContainerRuntimeVersion: version}}}
}

// The states of a claim follow from its status, and InUse from the record too, which is there before the status is written.
func TestClaimStates(t *testing.T) {
	f := &facts{Sources: Sources{Driver: "gpu.nvidia.com", NodeName: "n"}}
	allocated := func(c *resourceapi.ResourceClaim) { c.Status.Allocation = &resourceapi.AllocationResult{} }
	reserved := func(c *resourceapi.ResourceClaim) {
		c.Status.ReservedFor = []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: "p"}}
	}
	ready := func(driver, pool string) func(*resourceapi.ResourceClaim) {
		return func(c *resourceapi.ResourceClaim) {
			c.Status.Devices = []resourceapi.AllocatedDeviceStatus{{Driver: driver, Pool: pool, Conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue}}}}
		}
	}
	type changes = []func(*resourceapi.ResourceClaim)
	for _, c := range []struct {
		changes changes
		record  journal.ClaimState
		want    string
	}{
		{nil, "", statePending},
		{nil, journal.ClaimPrepared, statePending},
		{changes{allocated}, "", stateAllocated},
		{changes{allocated}, journal.ClaimPrepared, stateAllocated},
		{changes{allocated, reserved}, "", stateReserved},
		{changes{allocated, reserved}, journal.ClaimIntent, stateReserved},
		{changes{allocated, reserved, ready("nic.example.com", "n")}, "", stateReserved},
		{changes{allocated, reserved, ready("gpu.nvidia.com", "other")}, "", stateReserved},
		{changes{allocated, reserved, ready("gpu.nvidia.com", "n")}, "", stateInUse},
		{changes{allocated, reserved}, journal.ClaimPrepared, stateInUse},
	} {
		claim := resourceapi.ResourceClaim{}
		for _, change := range c.changes {
			change(&claim)
		}
		require.Equal(t, c.want, f.state(claim, c.record))
	}
}

// Who holds a board is found by what he has open, with his container.
func TestHolders(t *testing.T) {
	root := t.TempDir()
	process := func(pid, comm, cgroup string, open ...string) {
		dir := filepath.Join(root, "proc", pid)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "fd"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "comm"), []byte(comm+"\n"), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup+"\n"), 0o644))
		for n, target := range open {
			require.NoError(t, os.Symlink(target, filepath.Join(dir, "fd", string(rune('3'+n)))))
		}
	}
	const id = "0123456789ab0123456789ab0123456789ab0123456789ab0123456789ab0123"
	process("10", "nv-hostengine", "0::/system.slice/dcgm.service", "/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia0", "/dev/nvidia3")
	process("11", "python3", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice/cri-containerd-"+id+".scope", "/dev/nvidia3")
	process("12", "java", "0::/kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef/"+id, "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap3")
	process("13", "kerf", "0::/x", "/dev/nvidia3")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "proc/self"), 0o755))

	open, err := openDevices(root)
	require.NoError(t, err)
	require.Equal(t, map[int][]holder{
		0: {{PID: 10, Command: "nv-hostengine"}},
		3: {{PID: 10, Command: "nv-hostengine"}, {PID: 11, Command: "python3", Container: "0123456789ab", Pod: "01234567-89ab-cdef-0123-456789abcdef"}, {PID: 13, Command: "kerf"}},
	}, open)
	require.Equal(t, "pid 11 (python3) in container 0123456789ab of pod 01234567-89ab-cdef-0123-456789abcdef", open[3][1].String())

	all := withProcesses(open[3], []gpu.Process{{PID: 11, Command: "python3"}, {PID: 9, Command: "unseen"}})
	require.Equal(t, holder{PID: 9, Command: "unseen"}, all[0])
	f := &facts{holders: map[string][]holder{"g": all}}
	require.Len(t, f.outsiders("g"), 3, "all but kerf")
	f.records.Claims = []*journal.Claim{{Devices: []journal.ClaimDevice{{Device: gpu.Device{GPU: "g"}}}}}
	require.Len(t, f.outsiders("g"), 2, "nor the tenant of a claim")
}

func TestOptionsOfPrograms(t *testing.T) {
	p := program{args: []string{"containerd", "-c", "a", "--config=b"}}
	require.Equal(t, "a", p.option("-c"))
	require.Equal(t, "b", p.option("--config"))
	require.Empty(t, p.option("--root"))
}

// Rows never overlap, cover all slices, and lose no span.
func TestRows(t *testing.T) {
	whole := func(device string) Span { return Span{Size: 8, Use: Claimed, Device: device} }
	for name, c := range map[string]struct {
		spans []Span
		rows  int
	}{
		"nothing":        {nil, 1},
		"parts":          {[]Span{{Start: 4, Size: 4, Device: "b"}, {Start: 1, Size: 1, Device: "a"}}, 1},
		"shared in time": {[]Span{whole("a"), whole("b"), whole("c")}, 3},
		"contradictory":  {[]Span{{Start: 0, Size: 4, Device: "a"}, {Start: 2, Size: 2, Device: "b"}, {Start: 4, Size: 4, Device: "c"}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			all := rows(c.spans, 8, Free)
			require.Len(t, all, c.rows)
			found := 0
			for _, row := range all {
				at := 0
				for _, s := range row {
					require.Equal(t, at, s.Start)
					at += s.Size
					if s.Device != "" {
						found++
					}
				}
				require.Equal(t, 8, at)
			}
			require.Equal(t, len(c.spans), found)
		})
	}
}

func TestFit(t *testing.T) {
	for _, c := range [][2]string{{"idle", "idle    "}, {"team/web", "team/web"}, {"team-a/web", "web     "}, {"team-a/notebooks", "noteboo…"}, {"3g.40gb+me", "3g.40gb…"}} {
		require.Equal(t, c[1], fit(c[0], 8, false))
	}
	require.Equal(t, "noteboo~", fit("team-a/notebooks", 8, true))
}
