// Package box owns what happens inside a cluster's namespaces: its mounts and network, the processes of the cluster, and
// their health. It is the code of the box's pid 1.
//
// It relies on its namespaces being new, and never touches those of the host.
package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/cgroup"
	"github.com/kerf-project/kerf/test/cluster/internal/kube"
	"github.com/kerf-project/kerf/test/cluster/internal/proc"
	"github.com/kerf-project/kerf/test/cluster/internal/steps"
)

// Spec is all that the guardian and the box need to know.
type Spec struct {
	Name   string         `json:"name"`
	Kube   kube.Spec      `json:"kube"`
	Groups []cgroup.Group `json:"groups"`
	// RunDir is the run directory: it stays visible in the box at its own path.
	RunDir string `json:"runDir"`
	LogDir string `json:"logDir"`
	Socket string `json:"socket"`
	// Keep lists directories that stay the host's own where they lie below one that the box replaces.
	Keep []string `json:"keep"`
	// Images are archives to import at start.
	Images []string `json:"images"`
	// Tools lists the directories of the executables, as for PATH.
	Tools string `json:"tools"`
	// Settings are the choices made by the user, to tell one running cluster from another.
	Settings string `json:"settings"`
}

// SystemPath is where the box's components find the host's programs, iptables for example.
const SystemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ReadSpec reads the file that the command wrote.
func ReadSpec(path string) (Spec, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Spec{}, fmt.Errorf("read the specification of the cluster: %w", err)
	}
	var spec Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return Spec{}, fmt.Errorf("read the specification of the cluster in %s: %w", path, err)
	}
	return spec, nil
}

// Run is the life of the box's pid 1. It sends its progress to events and returns when ctx ends, which only happens when
// a start fails: a box in use is killed from outside.
func Run(ctx context.Context, spec Spec, events io.WriteCloser) error {
	if os.Getpid() != 1 {
		return errors.New("not pid 1 of a pid namespace: this command is internal, use \"up\"")
	}
	send := steps.NewSender(events)
	b := &box{spec: spec, send: send, reaper: proc.NewReaper()}
	go b.reaper.Run(ctx.Done())
	if err := b.start(ctx); err != nil {
		send.Send(steps.Event{Error: err.Error()})
		return err
	}
	send.Send(steps.Event{Up: true})
	if err := events.Close(); err != nil {
		return fmt.Errorf("close the progress stream: %w", err)
	}
	<-ctx.Done()
	return nil
}

type box struct {
	spec       Spec
	send       *steps.Sender
	reaper     *proc.Reaper
	supervisor *supervisor
}

func (b *box) start(ctx context.Context) error {
	if err := unix.Sethostname([]byte(b.spec.Kube.NodeName)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	b.supervisor = &supervisor{
		reaper: b.reaper,
		binary: b.spec.Kube.Binary,
		logDir: b.spec.LogDir,
		env: []string{
			"PATH=" + b.spec.Tools + ":" + SystemPath,
			"HOME=/root",
			// What components leave in the temporary directory goes with the box.
			"TMPDIR=" + kube.DataDir + "/tmp",
		},
	}
	for _, s := range []struct {
		name steps.Step
		do   func() error
	}{
		{steps.Mounts, func() error { return setUpMounts(b.spec) }},
		{steps.Network, setUpNetwork},
		{steps.Config, func() error { return writeConfig(b.spec.Kube) }},
	} {
		if err := b.send.Do(s.name, s.do); err != nil {
			return err
		}
	}
	return b.startComponents(ctx)
}
