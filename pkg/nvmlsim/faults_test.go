package nvmlsim

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/gpu"
)

func TestParseFaults(t *testing.T) {
	faults, err := parseFaults([]byte(`
faults:
- {name: all, operation: CreateGpuInstance, gpu: 1, call: 3, times: 2, after: true, return: NVML_ERROR_IN_USE}
- {name: counts}
- {name: pair, operation: SetMigMode, activation: RESET_REQUIRED, forever: true}
- {name: slow, delay: 1.5s}
`), 2)
	require.NoError(t, err)
	require.Len(t, faults, 4)
	require.Equal(t, nvml.ERROR_IN_USE, faults[0].ret)
	require.Equal(t, [2]int{3, 2}, [2]int{faults[0].Call, faults[0].Times})
	require.Equal(t, [2]int{1, 1}, [2]int{faults[1].Call, faults[1].Times})
	require.Equal(t, nvml.ERROR_RESET_REQUIRED, faults[2].activation)
	require.Equal(t, "1.5s", faults[3].delay.String())

	none, err := parseFaults(nil, 1)
	require.NoError(t, err)
	require.Empty(t, none)

	for text, want := range map[string]string{
		`{`:                                                    "yaml",
		`errors: []`:                                           `unknown field "errors"`,
		`faults: [{name: x, colour: red}]`:                     `unknown field "colour"`,
		`faults: [{name: x, name: y}]`:                         "already set",
		`faults: [{return: IN_USE}]`:                           "faults[0]: a fault needs a name",
		`faults: [{name: x}, {name: x}]`:                       `"x": the name is given twice`,
		`faults: [{name: x, operation: nvmlInit}]`:             "known are ComputeInstanceDestroy",
		`faults: [{name: x, gpu: 2}]`:                          "gpu 2 is not among the 2",
		`faults: [{name: x, gpu: -1}]`:                         "gpu -1",
		`faults: [{name: x, gpu: a}]`:                          "cannot unmarshal",
		`faults: [{name: x, call: -1}]`:                        "counted from 1",
		`faults: [{name: x, times: 2, forever: true}]`:         "is forever",
		`faults: [{name: x, operation: GetUUID, after: true}]`: "GetUUID has no effect",
		`faults: [{name: x, hang: true, crash: true}]`:         "several kinds",
		`faults: [{name: x, return: SUCCESS}]`:                 `"SUCCESS" is no error`,
		`faults: [{name: x, return: "19"}]`:                    "no error of NVML",
		`faults: [{name: x, activation: IN_USE}]`:              "of the operation SetMigMode",
		`faults: [{name: x, operation: SetMigMode, after: true, activation: TIMEOUT}]`: "not after it",
		`faults: [{name: x, delay: 5}]`:                     "missing unit",
		`faults: [{name: x, delay: soon}]`:                  "invalid duration",
		`faults: [{name: x, delay: -1s}]`:                   "not positive",
		`faults: [{name: x, instance: {}}]`:                 "no profile",
		`faults: [{name: x, client: {pid: 1, user: root}}]`: `unknown field`,
	} {
		_, err := parseFaults([]byte(text), 2)
		require.ErrorContains(t, err, want, text)
	}
}

// Every error that go-nvml knows can be asked for by the name it has there.
func TestReturnsAreComplete(t *testing.T) {
	known := 0
	for n := range 1000 {
		ret := nvml.Return(n)
		if name := ret.Error(); strings.HasPrefix(name, "ERROR_") {
			known++
			parsed, err := parseReturn(name)
			require.NoError(t, err)
			require.Equal(t, ret, parsed)
		}
	}
	require.Len(t, returns, known)
}

// The table of operations is what the calls really are.
func TestOperations(t *testing.T) {
	seen := map[string]bool{}
	n := openWith(t, "1xH100-SXM5-80GB,mig=on", WithTrace(func(op string, _ int) { seen[op] = true }))
	d := handle(t, n, 0)
	gi, ci := create(t, d, g1, 0)
	mig, ret := d.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	for _, target := range []any{mig, ci, gi, d, set, n.Interface()} {
		v := reflect.ValueOf(target)
		for i := range v.NumMethod() {
			args := make([]reflect.Value, v.Method(i).Type().NumIn())
			for a := range args {
				args[a] = reflect.Zero(v.Method(i).Type().In(a))
			}
			v.Method(i).Call(args)
		}
	}
	// Those that look at their arguments first.
	require.Equal(t, nvml.SUCCESS, n.Interface().Init())
	_, _ = d.CreateGpuInstance(&nvml.GpuInstanceProfileInfo{})
	_, _ = d.CreateGpuInstanceWithPlacement(&nvml.GpuInstanceProfileInfo{}, &nvml.GpuInstancePlacement{})
	_, _ = gi.CreateComputeInstance(&nvml.ComputeInstanceProfileInfo{})
	_, _ = gi.CreateComputeInstanceWithPlacement(&nvml.ComputeInstanceProfileInfo{}, &nvml.ComputeInstancePlacement{})
	var calls []string
	for op := range seen {
		calls = append(calls, op)
	}
	require.ElementsMatch(t, Operations(), calls)
}

// openWith makes a node with options, and with a faults file if there are any.
func openWith(t testing.TB, boards string, options ...Option) *Node {
	t.Helper()
	s, err := Parse(boards + ",state=" + t.TempDir())
	require.NoError(t, err)
	return openSpec(t, s, options...)
}

func openSpec(t testing.TB, s Spec, options ...Option) *Node {
	t.Helper()
	n, err := Open(s, append([]Option{WithLogger(klog.Logger{}), withProc("testdata/proc-devices")}, options...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

// withFaults makes a node whose faults are the text.
func withFaults(t testing.TB, boards, text string, options ...Option) (*Node, Spec) {
	t.Helper()
	dir := t.TempDir()
	s, err := Parse(fmt.Sprintf("%s,state=%s,faults=%s", boards, filepath.Join(dir, "state"), filepath.Join(dir, "faults.yaml")))
	require.NoError(t, err)
	setFaults(t, s, text)
	return openSpec(t, s, options...), s
}

func setFaults(t testing.TB, s Spec, text string) {
	t.Helper()
	require.NoError(t, replaceFile(s.Faults, []byte(text), 0o644))
}

// make1g makes a GPU instance of one slice and says what the driver answered.
func make1g(t testing.TB, d nvml.Device, start uint32) nvml.Return {
	t.Helper()
	info, ret := d.GetGpuInstanceProfileInfo(g1)
	if ret != nvml.SUCCESS {
		return ret
	}
	_, ret = d.CreateGpuInstanceWithPlacement(&info, &nvml.GpuInstancePlacement{Start: start, Size: 1})
	return ret
}

// Each kind, before the effect of a creation and after it.
func TestKindsOfFaults(t *testing.T) {
	const creation = "operation: CreateGpuInstanceWithPlacement, gpu: 0"
	for kind, test := range map[string]struct {
		fault string
		want  nvml.Return
		// made are the GPU instances that are there after it.
		made  []int
		check func(*testing.T, Board)
	}{
		"none":         {"", nvml.SUCCESS, []int{3}, nil},
		"return":       {"return: INSUFFICIENT_RESOURCES", nvml.ERROR_INSUFFICIENT_RESOURCES, nil, nil},
		"return after": {"return: UNKNOWN, after: true", nvml.ERROR_UNKNOWN, []int{3}, nil},
		"lose":         {"lose: true", nvml.ERROR_GPU_IS_LOST, nil, func(t *testing.T, b Board) { require.True(t, b.Lost) }},
		"lose after":   {"lose: true, after: true", nvml.SUCCESS, []int{3}, func(t *testing.T, b Board) { require.True(t, b.Lost) }},
		"client": {"client: {pid: 77, command: nv-hostengine}", nvml.SUCCESS, []int{3}, func(t *testing.T, b Board) {
			require.Equal(t, []Client{{PID: 77, Command: "nv-hostengine"}}, b.Clients)
		}},
		"instance in place": {"instance: {profile: 3g.40gb, placement: {start: 0, size: 4}}", nvml.ERROR_INSUFFICIENT_RESOURCES, []int{0}, func(t *testing.T, b Board) { require.True(t, b.Instances[0].Usable()) }},
		"instance beside":   {"instance: {profile: 2g.20gb, noComputeInstance: true}", nvml.SUCCESS, []int{3, 4}, func(t *testing.T, b Board) { require.Empty(t, b.Instances[1].Compute) }},
		"wrong instance":    {"instance: {profile: 5g.50gb}", nvml.ERROR_UNKNOWN, nil, nil},
	} {
		t.Run(kind, func(t *testing.T) {
			fault := creation
			if test.fault != "" {
				fault += ", " + test.fault
			}
			n, _ := withFaults(t, "2xH100-SXM5-80GB,mig=on", "faults: [{name: it, "+fault+"}]")
			require.Equal(t, nvml.SUCCESS, make1g(t, handle(t, n, 1), 3), "another GPU")
			require.Equal(t, test.want, make1g(t, handle(t, n, 0), 3))
			boards, err := n.Boards()
			require.NoError(t, err)
			var made []int
			for _, i := range boards[0].Instances {
				made = append(made, i.Placement.Start)
			}
			require.Equal(t, test.made, made)
			if test.check != nil {
				test.check(t, boards[0])
			}
			requireTree(t, n)
		})
	}
}

func TestXidFault(t *testing.T) {
	n, _ := withFaults(t, "1xH100-SXM5-80GB,mig=on", "faults: [{name: it, operation: GetMinorNumber, xid: {code: 94, gpuInstance: 7, computeInstance: 0}}]")
	d := handle(t, n, 0)
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, d.RegisterEvents(nvml.EventTypeXidCriticalError, set))
	_, ret = set.Wait(0)
	require.Equal(t, nvml.ERROR_TIMEOUT, ret)
	_, ret = d.GetMinorNumber()
	require.Equal(t, nvml.SUCCESS, ret)
	event, ret := set.Wait(0)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint64(94), event.EventData)
	require.Equal(t, [2]uint32{7, 0}, [2]uint32{event.GpuInstanceId, event.ComputeInstanceId})
}

func TestActivationFault(t *testing.T) {
	n, _ := withFaults(t, "1xH100-SXM5-80GB,1xL40S", "faults: [{name: it, operation: SetMigMode, activation: RESET_REQUIRED, times: 2}]")
	ret, activation := handle(t, n, 1).SetMigMode(on)
	require.Equal(t, [2]nvml.Return{nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_NOT_SUPPORTED}, [2]nvml.Return{ret, activation}, "not on a board without MIG")
	d := handle(t, n, 0)
	ret, activation = d.SetMigMode(on)
	require.Equal(t, [2]nvml.Return{nvml.SUCCESS, nvml.ERROR_RESET_REQUIRED}, [2]nvml.Return{ret, activation})
	current, pending, ret := d.GetMigMode()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, [2]int{off, on}, [2]int{current, pending})
	ret, activation = d.SetMigMode(on)
	require.Equal(t, [2]nvml.Return{nvml.SUCCESS, nvml.SUCCESS}, [2]nvml.Return{ret, activation})
}

// Which calls are counted, and at which of them it happens.
func TestFaultsCountCalls(t *testing.T) {
	n, spec := withFaults(t, "2xH100-SXM5-80GB,mig=on", `
faults:
- {name: second and third, operation: GetName, gpu: 1, call: 2, times: 2, return: TIMEOUT}
- {name: from the third on, operation: GetName, gpu: 0, call: 3, forever: true, return: NO_DATA}
- {name: any board, operation: GetName}
- {name: all of one, gpu: 1}
- {name: effects, after: true}
- {name: lookups, operation: DeviceGetHandleByPciBusId, gpu: 1}
- {name: nobody's board, operation: DeviceGetHandleByUUID, lose: true}
`)
	names := func(n *Node, index, times int) (got []nvml.Return) {
		d, ret := n.Interface().DeviceGetHandleByIndex(index)
		require.Equal(t, nvml.SUCCESS, ret)
		for range times {
			_, ret := d.GetName()
			got = append(got, ret)
		}
		return got
	}
	require.Equal(t, nvml.SUCCESS, n.Interface().Init())
	require.Equal(t, []nvml.Return{nvml.SUCCESS, nvml.ERROR_TIMEOUT}, names(n, 1, 2))
	require.Equal(t, []nvml.Return{nvml.SUCCESS, nvml.SUCCESS, nvml.ERROR_NO_DATA, nvml.ERROR_NO_DATA}, names(n, 0, 4))

	// Another process goes on counting, as one does that starts again.
	other := openSpec(t, spec)
	require.Equal(t, nvml.SUCCESS, other.Interface().Init())
	require.Equal(t, []nvml.Return{nvml.ERROR_TIMEOUT, nvml.SUCCESS}, names(other, 1, 2))
	require.Equal(t, []nvml.Return{nvml.ERROR_NO_DATA}, names(other, 0, 1))

	d := handle(t, n, 0)
	require.Equal(t, nvml.SUCCESS, make1g(t, d, 0))
	require.Equal(t, nvml.ERROR_INSUFFICIENT_RESOURCES, make1g(t, d, 0))
	_, ret := d.GetGpuFabricInfo()
	require.Equal(t, nvml.SUCCESS, ret)
	for _, id := range []string{busID(0), busID(1), "nonsense"} {
		_, _ = n.Interface().DeviceGetHandleByPciBusId(id)
	}
	_, ret = n.Interface().DeviceGetHandleByUUID(stateOf(t, n).GPUs[1].UUID)
	require.Equal(t, nvml.SUCCESS, ret)
	calls, err := n.FaultCalls()
	require.NoError(t, err)
	require.Equal(t, map[string]int{
		"second and third": 4, "from the third on": 5, "any board": 9, "all of one": 2*1 + 4 + 1, "effects": 1, "lookups": 1,
	}, calls)
}

func TestFaultsFile(t *testing.T) {
	n, spec := withFaults(t, "1xH100-SXM5-80GB", "faults: [{name: a, operation: GetName, return: TIMEOUT, forever: true}]")
	d := handle(t, n, 0)
	answers := func(want nvml.Return) {
		t.Helper()
		_, ret := d.GetName()
		require.Equal(t, want, ret)
	}
	answers(nvml.ERROR_TIMEOUT)
	setFaults(t, spec, "faults: [{name: b, operation: GetName, return: NO_DATA}]")
	answers(nvml.ERROR_NO_DATA)
	answers(nvml.SUCCESS)
	setFaults(t, spec, "faults: [{name: b, operation: GetName, return: NO_DATA}, {name: c}]")
	answers(nvml.SUCCESS) // The name is the same, and so is its count.
	setFaults(t, spec, "faults: [{name: b, operation: GetNames}]")
	answers(nvml.ERROR_UNKNOWN)
	require.NoError(t, os.Remove(spec.Faults))
	answers(nvml.SUCCESS)

	_, err := Open(spec, withProc("testdata/proc-devices"))
	require.ErrorIs(t, err, os.ErrNotExist, "a name that was mistyped is no experiment")
	setFaults(t, spec, "faults: [{name: b, gpu: 1}]")
	_, err = Open(spec, withProc("testdata/proc-devices"))
	require.ErrorContains(t, err, "gpu 1 is not among the 1")
}

// The outside world suffers no faults and counts no calls.
func TestOutsideWorldHasNoFaults(t *testing.T) {
	n, _ := withFaults(t, "1xH100-SXM5-80GB", "faults: [{name: a, return: UNKNOWN, forever: true}]")
	outside := again(t, n)
	require.NoError(t, outside.SetMIGMode("0", true))
	_, err := outside.CreateInstance("0", "1g.10gb", nil, true)
	require.NoError(t, err)
	calls, err := outside.FaultCalls()
	require.NoError(t, err)
	require.Empty(t, calls)
}

func FuzzParseFaults(f *testing.F) {
	for _, seed := range []string{
		"", "faults: []", `{"faults":[{"name":"a","operation":"Init","return":"TIMEOUT"}]}`,
		"faults:\n- {name: a, gpu: 0, call: 2, times: 3, after: true, crash: true}\n- {name: b, hang: true, forever: true}",
		"faults: [{name: a, operation: SetMigMode, activation: IN_USE}, {name: b, delay: 1h2m3s}]",
		"faults: [{name: a, client: {pid: 7, command: x, gpuInstance: 7, computeInstance: 0, process: true}}, {name: b, lose: true}]",
		"faults: [{name: a, instance: {profile: 1g.10gb+me, placement: {start: 6, size: 1}}}, {name: b, xid: {code: 79, gpuInstance: -1}}]",
	} {
		f.Add([]byte(seed))
	}
	h100, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		faults, err := parseFaults(data, 1)
		if err != nil {
			require.Empty(t, faults)
			return
		}
		// Whatever is accepted leaves a state that hardware can be in.
		s := newState(Spec{Boards: []gpu.Board{h100}, MIG: true}, majors{1, 2, 3})
		for _, fault := range faults {
			require.GreaterOrEqual(t, fault.Call, 1)
			require.GreaterOrEqual(t, fault.Times, 1)
			require.False(t, fault.due(fault.Call-1))
			require.True(t, fault.due(fault.Call))
			s.count(fault.Name)
			if before := s.clone(); fault.happen(s, &s.GPUs[0]) != nvml.SUCCESS {
				s = before
			}
		}
		text, err := s.encode()
		require.NoError(t, err)
		_, err = decode(text)
		require.NoError(t, err)
	})
}
