// Package exporter is a stand-in for NVIDIA's dcgm-exporter on the node's simulated GPUs: the same format, the same
// order of labels, and the same gap. It lists the GPUs and MIG instances that existed when it started or was last
// reloaded, and it reads values in an interval of its own. How busy a device is, a script of the test says.
package exporter

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// Device is a GPU, with Instance -1, or an instance of it.
type Device struct {
	UUID     string
	Instance int
}

// Reading is what a device is measured with.
type Reading struct {
	// Busy is in percent.
	Busy float64
	// UsedMiB and FreeMiB are its memory.
	UsedMiB, FreeMiB int
}

// Script says how busy the devices are now. One that it leaves out is idle.
type Script func(context.Context) (map[Device]Reading, error)

// Exporter serves /metrics.
type Exporter struct {
	boards func() ([]kit.Board, error)
	script Script
	server *http.Server
	port   int

	mutex    sync.Mutex
	listed   []kit.Board
	readings map[Device]Reading
	// broken is what is answered instead, nil for what is right.
	broken http.Handler
}

// Start lists the boards and serves, until Stop. It collects in the interval.
func Start(ctx context.Context, boards func() ([]kit.Board, error), script Script, collect time.Duration) (*Exporter, error) {
	e := &Exporter{boards: boards, script: script}
	if err := e.Reload(); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e.port = listener.Addr().(*net.TCPAddr).Port
	e.server = &http.Server{Handler: e, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = e.server.Serve(listener) }()
	go func() {
		for ticker := time.NewTicker(collect); ; {
			// What cannot be read keeps its last value, as in DCGM.
			if readings, err := script(ctx); err == nil {
				e.mutex.Lock()
				e.readings = readings
				e.mutex.Unlock()
			}
			select {
			case <-ctx.Done():
				ticker.Stop()
				_ = e.server.Close()
				return
			case <-ticker.C:
			}
		}
	}()
	return e, nil
}

// Address is host and port.
func (e *Exporter) Address() string { return fmt.Sprintf("127.0.0.1:%d", e.port) }

// Reload lists what exists now, as the exporter does on SIGHUP and after a restart.
func (e *Exporter) Reload() error {
	boards, err := e.boards()
	if err != nil {
		return err
	}
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.listed = boards
	return nil
}

// Break has everything answered by a handler, nil ends that.
func (e *Exporter) Break(handler http.Handler) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.broken = handler
}

// ServeHTTP writes the rows.
func (e *Exporter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if e.broken != nil {
		e.broken.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var out strings.Builder
	for _, metric := range []struct {
		name, help  string
		ofInstances bool
		value       func(Reading) float64
	}{
		{"DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", false, func(r Reading) float64 { return r.Busy }},
		{"DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", true, func(r Reading) float64 { return float64(r.UsedMiB) }},
		{"DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", true, func(r Reading) float64 { return float64(r.FreeMiB) }},
		{"DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Ratio of time the graphics engine is active.", true, func(r Reading) float64 { return r.Busy / 100 }},
	} {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s gauge\n", metric.name, metric.help, metric.name)
		for index, b := range e.listed {
			labels := fmt.Sprintf(`gpu="%d",UUID="%s",pci_bus_id="00000000:%02X:00.0",device="nvidia%d",modelName="NVIDIA H100 80GB HBM3"`, index, b.UUID, 0x10+index, b.Minor)
			if !b.MIG {
				fmt.Fprintf(&out, "%s{%s,hostname=\"%s\"} %g\n", metric.name, labels, kit.NodeName, metric.value(e.readings[Device{b.UUID, -1}]))
				continue
			}
			for _, i := range b.Instances {
				if metric.ofInstances {
					fmt.Fprintf(&out, "%s{%s,%s,hostname=\"%s\"} %g\n", metric.name, labels, instanceLabels(i), kit.NodeName, metric.value(e.readings[Device{b.UUID, i.ID}]))
				}
			}
		}
	}
	_, _ = w.Write([]byte(out.String()))
}

func instanceLabels(i gpu.Instance) string {
	return fmt.Sprintf(`GPU_I_PROFILE="%s",GPU_I_ID="%d"`, i.Profile, i.ID)
}
