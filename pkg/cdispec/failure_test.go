package cdispec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Whatever cannot be written must leave no file, and say what is wrong.
func TestRefusals(t *testing.T) {
	otherPlace, noCompute, split := mig(board0, "r", at(4), 9), mig(board0, "r", at(4), 9), mig(board0, "r", at(4), 9)
	otherPlace.Instance.Placement = at(5)
	noCompute.Instance.Compute = nil
	split.Instance.Compute[0].Whole = false
	missing := mig(board0, "r", at(4), 9)
	missing.Instance = nil
	unknown := whole(gpu.GPU{UUID: "GPU-cccccccc", PCIBusID: "ffff:03:00.0"}, "r")
	swapped := whole(gpu.GPU{UUID: "GPU-dddddddd", PCIBusID: board0.PCIBusID}, "r")
	beyond := mig(board0, "r", at(4), 15)

	noUVM := func(o *Options) {
		host := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Join(host, "proc"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(host, devicesFile), []byte("Character devices:\n195 nvidia\n"), 0o644))
		o.HostRoot = host
	}
	for name, test := range map[string]struct {
		device Device
		change func(*Options)
		want   []string
	}{
		"capability missing":      {beyond, nil, []string{"1g.10gb at 4:1 (GPU instance 15)", board0.UUID, "gpu1/gi15/access", migMinorsFile}},
		"another instance":        {otherPlace, nil, []string{"at 4:1", "at 5:1"}},
		"no instance":             {missing, nil, []string{"no instance was verified"}},
		"no compute instance":     {noCompute, nil, []string{"0 compute instances"}},
		"partial compute":         {split, nil, []string{"spans it"}},
		"unknown board":           {unknown, nil, []string{"GPU-cccccccc"}},
		"another board there":     {swapped, nil, []string{"GPU-dddddddd"}},
		"no driver files":         {whole(board0, "r"), func(o *Options) { o.DriverRoot = t.TempDir() }, []string{"driver's files"}},
		"unified memory unloaded": {whole(board0, "r"), noUVM, []string{"nvidia-uvm", "modprobe"}},
		"no /proc/devices":        {whole(board0, "r"), func(o *Options) { o.HostRoot = t.TempDir() }, []string{"proc/devices"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWriter(t, test.change)
			_, err := w.Write(t.Context(), claim, "note", []Device{test.device})
			for _, part := range append(test.want, claim) {
				require.ErrorContains(t, err, part)
			}
			exists, err := w.Exists(claim)
			require.NoError(t, err)
			require.False(t, exists)
		})
	}
}

func TestInvalidate(t *testing.T) {
	asked := 0
	w := newWriter(t, func(o *Options) { o.Lib = library(func(string) { asked++ }) })
	write := func(g gpu.GPU) specs.Spec {
		_, err := w.Write(t.Context(), claim, "note", []Device{whole(g, "r")})
		require.NoError(t, err)
		return read(t, w, claim)
	}
	first := write(board0)
	before := asked
	require.NotZero(t, before)
	require.Equal(t, first, write(board0))
	require.Equal(t, before, asked, "made once")

	moved := board0
	moved.Minor = 7
	require.Equal(t, "/dev/nvidia7", write(moved).Devices[0].ContainerEdits.DeviceNodes[0].Path, "a minor that has changed is not served from memory")

	before = asked
	w.Invalidate()
	write(board0)
	require.Greater(t, asked, before)
}

// A board on which the driver hangs costs its own claims only.
func TestHangingBoard(t *testing.T) {
	hangs, release := make(chan struct{}, 1), make(chan struct{})
	w := newWriter(t, func(o *Options) {
		o.Lib = library(func(uuid string) {
			if uuid == board0.UUID {
				select {
				case hangs <- struct{}{}:
				default:
				}
				<-release
			}
		})
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	refused := make(chan error, 1)
	go func() {
		_, err := w.Write(ctx, "hanging", "note", []Device{whole(board0, "r")})
		refused <- err
	}()
	<-hangs
	_, err := w.Write(t.Context(), "other", "note", []Device{whole(board1, "r"), mig(board0, "m", at(0), 1)})
	require.NoError(t, err)
	cause := errors.New("the kubelet has given up")
	cancel(cause)
	err = <-refused
	require.ErrorIs(t, err, gpu.ErrDeadline)
	require.ErrorIs(t, err, cause)
	close(release)
	_, err = w.Write(t.Context(), "hanging", "note", []Device{whole(board0, "r")})
	require.NoError(t, err)
}
