package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// newSimCommand plays the outside world on a simulated node: other agents,
// failures, reboots. It is hidden, because it is for tests and demonstrations.
func newSimCommand() *cobra.Command {
	var state string
	sim := &cobra.Command{
		Use:    "sim",
		Short:  "Play the outside world on a simulated node",
		Hidden: true,
	}
	sim.PersistentFlags().StringVar(&state, "state", "", "state directory of the simulated node (the state= of --nvml=sim:)")
	// do makes the body of a command: it opens the node for as long as f runs.
	do := func(f func(cmd *cobra.Command, n *nvmlsim.Node, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) (err error) {
			if state == "" {
				return errors.New("--state is required: the state directory of the simulated node")
			}
			n, err := nvmlsim.OpenExisting(state)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, n.Close()) }()
			return f(cmd, n, args)
		}
	}
	client := &cobra.Command{Use: "client", Short: "Come and go as a client of a GPU or instance"}
	client.AddCommand(simClientAdd(do), simAct(do, "remove GPU PID", "Close what a client has open", func(n *nvmlsim.Node, args []string) error {
		pid, err := strconv.Atoi(args[1])
		if err != nil {
			return fmt.Errorf("PID %q: %w", args[1], err)
		}
		return n.RemoveClient(args[0], pid)
	}))
	sim.AddCommand(
		simList(do), simCreate(do), client, simXid(do), simLoad(do), simFaults(do),
		simAct(do, "destroy-instance GPU ID", "Destroy a GPU instance and its compute instances", func(n *nvmlsim.Node, args []string) error {
			id, err := strconv.Atoi(args[1])
			if err != nil {
				return fmt.Errorf("GPU instance id %q: %w", args[1], err)
			}
			return n.DestroyInstance(args[0], id)
		}),
		simAct(do, "mig GPU on|off", "Ask for a MIG mode as another agent would", func(n *nvmlsim.Node, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return fmt.Errorf("%q is neither on nor off", args[1])
			}
			return n.SetMIGMode(args[0], args[1] == "on")
		}),
		simAct(do, "ecc GPU N", "Count N uncorrectable memory errors", func(n *nvmlsim.Node, args []string) error {
			errors, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return fmt.Errorf("number of errors %q: %w", args[1], err)
			}
			return n.ECCErrors(args[0], errors)
		}),
		simAct(do, "remap GPU none|pending|failed", "Say how the remapping of broken rows stands", func(n *nvmlsim.Node, args []string) error {
			if !slices.Contains([]string{"none", "pending", "failed"}, args[1]) {
				return fmt.Errorf("%q is neither none, pending nor failed", args[1])
			}
			return n.RemapRows(args[0], args[1] == "pending", args[1] == "failed")
		}),
		simAct(do, "lose GPU", "Let a GPU fall off the bus", func(n *nvmlsim.Node, args []string) error { return n.Lose(args[0]) }),
		simAct(do, "restore GPU", "Bring a lost GPU back", func(n *nvmlsim.Node, args []string) error { return n.Restore(args[0]) }),
		simAct(do, "reset GPU", "Reset a GPU", func(n *nvmlsim.Node, args []string) error { return n.Reset(args[0]) }),
		simAct(do, "reboot", "Reboot the node: all sessions, clients and instances end", func(n *nvmlsim.Node, _ []string) error { return n.Reboot() }),
	)
	return sim
}

type simBody = func(func(*cobra.Command, *nvmlsim.Node, []string) error) func(*cobra.Command, []string) error

// simAct makes a command of arguments alone. GPU is an index or a UUID.
func simAct(do simBody, use, short string, act func(*nvmlsim.Node, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(len(strings.Fields(use)) - 1),
		RunE: do(func(_ *cobra.Command, n *nvmlsim.Node, args []string) error { return act(n, args) }),
	}
}

func simList(do simBody) *cobra.Command {
	var output string
	list := &cobra.Command{
		Use: "list", Short: "List GPUs, modes, instances and clients", Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, n *nvmlsim.Node, _ []string) error {
			boards, err := n.Boards()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(boards)
			case "text":
				return printBoards(cmd.OutOrStdout(), boards)
			default:
				return fmt.Errorf("output %q is neither text nor json", output)
			}
		}),
	}
	list.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return list
}

func printBoards(w io.Writer, boards []nvmlsim.Board) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, b := range boards {
		fmt.Fprintf(table, "GPU %d\t%s\t%s\t/dev/nvidia%d\tMIG %s\ttime slice %s, compute mode %s\n", b.Index, b.UUID, b.Model, b.Minor, simMode(b), b.TimeSlice, b.ComputeMode)
		for _, i := range b.Instances {
			fmt.Fprintf(table, "  GPU instance %d\t%s\t%s", i.ID, i.Profile, i.Placement)
			for _, c := range i.Compute {
				fmt.Fprintf(table, "\tcompute instance %d: %s", c.ID, c.UUID)
			}
			fmt.Fprintln(table)
		}
		for _, c := range b.Clients {
			fmt.Fprintf(table, "  client %d\t%s\t%s\n", c.PID, c.Command, simClientOf(c))
		}
	}
	return table.Flush()
}

func simMode(b nvmlsim.Board) string {
	onOff := map[bool]string{true: "on", false: "off"}
	mode := onOff[b.MIG]
	switch {
	case b.Lost:
		return "unknown: the GPU is lost"
	case !b.MIGCapable:
		return "not supported"
	case b.MIG != b.MIGPending:
		mode += ", pending " + onOff[b.MIGPending]
	}
	return mode
}

func simClientOf(c nvmlsim.Client) string {
	of := "of the GPU"
	if c.GI != nil {
		of = fmt.Sprintf("of GPU instance %d", *c.GI)
	}
	if c.CI != nil {
		of += fmt.Sprintf(", compute instance %d", *c.CI)
	}
	if c.Process {
		return "runs CUDA, " + of
	}
	return "holds a handle, " + of
}

func simCreate(do simBody) *cobra.Command {
	var start, size int
	var noCompute bool
	create := &cobra.Command{
		Use: "create-instance GPU PROFILE", Short: "Create an instance as an administrator would", Args: cobra.ExactArgs(2),
		RunE: do(func(cmd *cobra.Command, n *nvmlsim.Node, args []string) error {
			var at *gpu.Placement
			if start >= 0 {
				at = &gpu.Placement{Start: start, Size: size}
			}
			i, err := n.CreateInstance(args[0], args[1], at, !noCompute)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), i.String())
			}
			return err
		}),
	}
	create.Flags().IntVar(&start, "start", -1, "first memory slice, -1 for the driver's choice")
	create.Flags().IntVar(&size, "size", 1, "number of memory slices, with --start")
	create.Flags().BoolVar(&noCompute, "no-compute-instance", false, "leave the GPU instance without a compute instance")
	return create
}

func simClientAdd(do simBody) *cobra.Command {
	var gi, ci int
	c := nvmlsim.Client{}
	add := &cobra.Command{
		Use: "add GPU PID", Short: "Open a GPU, a GPU instance or a compute instance", Args: cobra.ExactArgs(2),
		RunE: do(func(cmd *cobra.Command, n *nvmlsim.Node, args []string) (err error) {
			if c.PID, err = strconv.Atoi(args[1]); err != nil {
				return fmt.Errorf("PID %q: %w", args[1], err)
			}
			c.GI, c.CI = simID(cmd, "gi", &gi), simID(cmd, "ci", &ci)
			return n.AddClient(args[0], c)
		}),
	}
	add.Flags().IntVar(&gi, "gi", 0, "GPU instance id; without it the client has the whole GPU open")
	add.Flags().IntVar(&ci, "ci", 0, "compute instance id, with --gi")
	add.Flags().StringVar(&c.Command, "command", "outside", "name of its program")
	add.Flags().BoolVar(&c.Process, "process", false, "it runs CUDA, rather than only holding a handle as DCGM does")
	add.Flags().BoolVar(&c.InPod, "in-pod", false, "it runs in a container of a pod")
	return add
}

func simFaults(do simBody) *cobra.Command {
	return &cobra.Command{
		Use: "faults", Short: "Print how often each fault of --nvml=sim:…,faults=FILE was met", Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, n *nvmlsim.Node, _ []string) error {
			calls, err := n.FaultCalls()
			if err != nil {
				return err
			}
			for _, name := range slices.Sorted(maps.Keys(calls)) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s %d\n", name, calls[name])
			}
			return nil
		}),
	}
}

func simXid(do simBody) *cobra.Command {
	var gi, ci int
	xid := &cobra.Command{
		Use: "xid GPU CODE", Short: "Report an Xid of a GPU, or of one of its instances", Args: cobra.ExactArgs(2),
		RunE: do(func(cmd *cobra.Command, n *nvmlsim.Node, args []string) error {
			code, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return fmt.Errorf("Xid %q: %w", args[1], err) //nolint:revive,staticcheck // Xid is a name
			}
			return n.Xid(args[0], code, simID(cmd, "gi", &gi), simID(cmd, "ci", &ci))
		}),
	}
	xid.Flags().IntVar(&gi, "gi", 0, "GPU instance id; without it the event is unattributed")
	xid.Flags().IntVar(&ci, "ci", 0, "compute instance id")
	return xid
}

func simLoad(do simBody) *cobra.Command {
	var gi int
	l := nvmlsim.Load{}
	cmd := &cobra.Command{
		Use: "load GPU PERCENT", Short: "Say how busy a GPU is, or one of its instances", Args: cobra.ExactArgs(2),
		RunE: do(func(cmd *cobra.Command, n *nvmlsim.Node, args []string) (err error) {
			if l.EnginePercent, err = strconv.ParseFloat(args[1], 64); err != nil {
				return fmt.Errorf("percent %q: %w", args[1], err)
			}
			return n.SetLoad(args[0], simID(cmd, "gi", &gi), l)
		}),
	}
	cmd.Flags().IntVar(&gi, "gi", 0, "GPU instance id; without it the load is that of a GPU that is not in MIG mode")
	cmd.Flags().Float64Var(&l.DRAMPercent, "dram", 0, "how busy the bandwidth of its memory is, in percent")
	cmd.Flags().Uint64Var(&l.MemoryMiB, "memory", 0, "how much of its memory is in use, in MiB")
	return cmd
}

// simID is nil for a flag that was not given.
func simID(cmd *cobra.Command, flag string, value *int) *int {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return value
}
