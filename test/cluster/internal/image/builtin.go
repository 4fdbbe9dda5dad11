package image

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// idle ends at once when it is told to, so that deleting its pod takes no grace period. As pid 1 a plain "sleep" would
// ignore SIGTERM.
const idle = `#!/bin/sh
trap 'exit 0' TERM INT
while :; do
	sleep 3600 &
	wait $!
done
`

// Pause is the image of a pod's sandbox.
func Pause(name, pause string) Spec {
	return Spec{Name: name, Files: []Mapping{{Src: pause, Dst: "/pause"}}, Entrypoint: []string{"/pause"}}
}

// Workload is an image with a shell and the usual tools, which does nothing until it is told to end. A command of one's
// own can end with "exec idle".
func Workload(ctx context.Context, name, busybox string) (Spec, error) {
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return Spec{}, fmt.Errorf("list the tools of %s: %w", busybox, err)
	}
	links := map[string]string{}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			links["/bin/"+applet] = "busybox"
		}
	}
	return Spec{
		Name:    name,
		Files:   []Mapping{{Src: busybox, Dst: "/bin/busybox"}},
		Links:   links,
		Scripts: map[string]string{"/bin/idle": idle},
		Cmd:     []string{"/bin/idle"},
	}, nil
}
