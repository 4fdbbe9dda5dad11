package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/kerf-project/kerf/test/cluster/internal/box"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
)

// Status shows how the cluster fares. It returns an error when it cannot be used.
func Status(ctx context.Context, c layout.Cluster, out io.Writer) error {
	s, err := readState(c)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cluster %s is not up", c.Name)
	}
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "guardian\tpid %d\t%s\n", s.Guardian.Pid, aliveness(s.Guardian))
	fmt.Fprintf(table, "box\tpid %d\t%s\n", s.Init.Pid, aliveness(s.Init))
	status, asked := box.AskStatus(ctx, c.Socket())
	for _, component := range status.Components {
		fmt.Fprintf(table, "%s\tpid %d in the box\t%s\n", component.Name, component.Pid, component.State)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("show the status: %w", err)
	}
	if asked != nil {
		return fmt.Errorf("cluster %s is not up (\"down\" removes what is left of it): %w", c.Name, asked)
	}
	if status.Problem != "" {
		return fmt.Errorf("cluster %s cannot be used: %s", c.Name, status.Problem)
	}
	_, err = fmt.Fprintf(out, "cluster %s is up\n", c.Name)
	return err
}

func aliveness(p process) string {
	if p.alive() {
		return "running"
	}
	return "dead"
}
