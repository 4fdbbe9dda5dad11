package nvmlsim

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

const childDir = "NVMLSIM_TEST_CHILD"

// TestChild is no test of its own: it is the other process of TestKilledProcess.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("it only runs as another test's child")
	}
	n, err := OpenExisting(dir, withProc("testdata/proc-devices"))
	require.NoError(t, err)
	d := handle(t, n, 0)
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, d.RegisterEvents(nvml.EventTypeXidCriticalError, set))
	create(t, handle(t, n, 1), g3, 4)
	fmt.Println("ready")
	select {}
}

// What a killed process made is there; what it held is not.
func TestKilledProcess(t *testing.T) {
	n := newNode(t, "2xH100-SXM5-80GB")
	_, activation := handle(t, n, 1).SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, activation)

	child := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	child.Env = append(os.Environ(), childDir+"="+n.kernel.dir)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = lines.Text() == "ready"
	}
	if ready {
		_, activation = handle(t, n, 0).SetMigMode(on)
	}
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	require.True(t, ready)
	require.Equal(t, nvml.ERROR_IN_USE, activation)

	_, activation = handle(t, n, 0).SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, activation)
	boards, err := n.Boards()
	require.NoError(t, err)
	require.Len(t, boards[1].Instances, 1)
	require.Equal(t, gpu.Placement{Start: 4, Size: 4}, boards[1].Instances[0].Placement)
	require.True(t, boards[1].Instances[0].Usable())
}

// Two processes see one truth at once.
func TestTwoProcesses(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,mig=on")
	other := again(t, n)
	here, there := handle(t, n, 0), handle(t, other, 0)
	gi, ci := create(t, here, g2, 2)
	found, ret := there.GetGpuInstances(profile(t, there, g2))
	require.Equal(t, nvml.SUCCESS, ret)
	require.Len(t, found, 1)
	_, ret = there.CreateGpuInstanceWithPlacement(profile(t, there, g1), &nvml.GpuInstancePlacement{Start: 3, Size: 1})
	require.Equal(t, nvml.ERROR_INSUFFICIENT_RESOURCES, ret)
	require.Equal(t, nvml.SUCCESS, ci.Destroy())
	require.Equal(t, nvml.SUCCESS, found[0].Destroy())
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, gi.Destroy())
	reopened, err := Parse("1xH100-SXM5-80GB,mig=on,state=" + n.kernel.dir)
	require.NoError(t, err)
	third, err := Open(reopened, withProc("testdata/proc-devices"))
	require.NoError(t, err)
	require.Equal(t, stateOf(t, n), stateOf(t, third))
	require.NoError(t, third.Close())
}

// Whatever many users of many processes do at once, no slice is given twice and
// every one that succeeded has its effect.
func TestConcurrentUse(t *testing.T) {
	n := newNode(t, "2xH100-SXM5-80GB,mig=on")
	nodes := []*Node{n, again(t, n), again(t, n)}
	handles := make([][]nvml.Device, len(nodes))
	for i, node := range nodes {
		handles[i] = []nvml.Device{handle(t, node, 0), handle(t, node, 1)}
	}
	var users sync.WaitGroup
	for user := range 9 {
		users.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(user)))
			var mine []nvml.GpuInstance
			for range 40 {
				d := handles[user%len(nodes)][random.IntN(2)]
				info, ret := d.GetGpuInstanceProfileInfo([]int{g1, g2, g3, g1me}[random.IntN(4)])
				if ret != nvml.SUCCESS {
					t.Error(ret)
					return
				}
				if gi, ret := d.CreateGpuInstance(&info); ret == nvml.SUCCESS {
					mine = append(mine, gi)
				} else if ret != nvml.ERROR_INSUFFICIENT_RESOURCES {
					t.Error(ret)
				}
				if len(mine) > 0 && random.IntN(2) == 0 {
					if ret := mine[0].Destroy(); ret != nvml.SUCCESS {
						t.Error("somebody else destroyed it:", ret)
					}
					mine = mine[1:]
				}
			}
			for _, gi := range mine {
				if ret := gi.Destroy(); ret != nvml.SUCCESS {
					t.Error("somebody else destroyed it:", ret)
				}
			}
		})
	}
	users.Wait()
	for _, node := range nodes {
		for _, g := range stateOf(t, node).GPUs {
			require.Empty(t, g.Instances)
		}
	}
}

// Random histories: the state stays one that the hardware can be in (decode
// checks it), and the tree is what a fresh look at the state would make it.
func TestHistories(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			n := newNode(t, "1xH100-SXM5-80GB,1xA100-SXM4-80GB,1xL40S,mig=on")
			for range 120 {
				board := fmt.Sprint(random.IntN(3))
				boards, err := n.Boards()
				require.NoError(t, err)
				b := boards[board[0]-'0']
				switch random.IntN(12) {
				case 0:
					_ = n.SetMIGMode(board, random.IntN(4) > 0)
				case 1:
					_ = n.Reset(board)
				case 2:
					if random.IntN(10) == 0 {
						require.NoError(t, n.Reboot())
					}
				case 3, 4:
					if len(b.Instances) > 0 {
						_ = n.DestroyInstance(board, b.Instances[random.IntN(len(b.Instances))].ID)
					}
				case 5:
					_ = n.AddClient(board, Client{PID: random.IntN(20), Command: "x", Process: !b.MIG})
				case 6:
					if len(b.Instances) > 0 {
						_ = n.AddClient(board, Client{PID: random.IntN(20), GI: &b.Instances[0].ID, CI: ptr(0), Process: true})
					}
				case 7:
					for _, c := range b.Clients {
						require.NoError(t, n.RemoveClient(board, c.PID))
					}
				default:
					profiles := stateOf(t, n).GPUs[b.Index].table.Profiles
					if len(profiles) > 0 {
						_, _ = n.CreateInstance(board, profiles[random.IntN(len(profiles))].Name, nil, random.IntN(3) > 0)
					}
				}
				data, err := os.ReadFile(n.kernel.path())
				require.NoError(t, err)
				_, err = decode(data)
				require.NoError(t, err)
			}
			requireTree(t, n)
		})
	}
}
