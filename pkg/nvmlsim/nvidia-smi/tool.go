package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

// Exit codes, as the real tool has them.
const (
	exitOK           = 0
	exitArgument     = 2
	exitNotSupported = 3
	exitNoPermission = 4
	exitNotFound     = 6
	exitNoDriver     = 9
	exitLost         = 15
	exitUnknown      = 255
	notFoundText     = "No devices were found"
	seeHelp          = "Please run 'nvidia-smi -h' for help."
	helpText         = "NVIDIA System Management Interface of a simulated node\n\nnvidia-smi [-L | --query-gpu=FIELD[,FIELD...] --format=csv[,noheader][,nounits] | --version]\nnvidia-smi [-i GPU] -c MODE\nnvidia-smi compute-policy [-i GPU] --set-timeslice=0|1|2|3\n\n"
	queryFieldText   = "Fields: "
)

type tool struct {
	devices  devices
	identity string
	// state is the file with the state of the node's hardware, which containers do not have.
	state string
	out   io.Writer
}

// options are what the command line asks for.
type options struct {
	list, help, version bool
	query, format       string
	// id names a board for what is to be set.
	id, computeMode, timeSlice string
}

func (t tool) run(args []string) int {
	o, err := parse(args)
	if err != nil {
		fmt.Fprintf(t.out, "%s\n", err)
		return exitArgument
	}
	if o.help {
		fmt.Fprint(t.out, helpText, queryFieldText, strings.Join(fieldNames(), ", "), "\n")
		return exitOK
	}
	if o.computeMode != "" || o.timeSlice != "" {
		s, err := readSettings(o)
		code := exitArgument
		if err == nil {
			code, err = t.set(o.id, s)
		}
		if err != nil {
			fmt.Fprintf(t.out, "%s\n", err)
		}
		return code
	}
	node, err := identity.Read(t.identity)
	if err != nil {
		fmt.Fprintf(t.out, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver: %s\n", err)
		return exitNoDriver
	}
	if o.version {
		fmt.Fprintf(t.out, "NVIDIA-SMI version  : %[1]s\nDRIVER version      : %[1]s\nCUDA Version        : %[2]s\n", node.DriverVersion, node.CUDAVersion)
		return exitOK
	}
	gpus := visible(node, t.devices)
	if len(gpus) == 0 {
		fmt.Fprintln(t.out, notFoundText)
		return exitNotFound
	}
	switch {
	case o.query != "":
		if err := t.queryGPUs(node, gpus, o); err != nil {
			fmt.Fprintf(t.out, "%s\n", err)
			return exitArgument
		}
	case o.list:
		t.listGPUs(gpus)
	default:
		t.summary(node, gpus)
	}
	return exitOK
}

// parse reads the few options that there are. A value follows "=" or is the next argument.
func parse(args []string) (options, error) {
	var o options
	policy := len(args) > 0 && args[0] == "compute-policy"
	if policy {
		args = args[1:]
	}
	for len(args) > 0 {
		name, value, given := strings.Cut(args[0], "=")
		args = args[1:]
		var into *string
		switch name {
		case "-L", "--list-gpus":
			o.list = true
		case "-h", "--help":
			o.help = true
		case "--version":
			o.version = true
		case "--query-gpu":
			into = &o.query
		case "--format":
			into = &o.format
		case "-i", "--id":
			into = &o.id
		case "-c", "--compute-mode":
			into = &o.computeMode
		case "--set-timeslice":
			into = &o.timeSlice
		default:
			return o, fmt.Errorf("ERROR: Option %s is not recognized. %s", name, seeHelp)
		}
		switch {
		case into == nil && given:
			return o, fmt.Errorf("ERROR: Option %s takes no value. %s", name, seeHelp)
		case into == nil:
		case given && value != "":
			*into = value
		case !given && len(args) > 0 && args[0] != "":
			*into, args = args[0], args[1:]
		default:
			return o, fmt.Errorf("ERROR: Option %s needs a value. %s", name, seeHelp)
		}
	}
	if (o.query != "") != (o.format != "") || o.query != "" && o.list ||
		policy != (o.timeSlice != "") || policy && o.computeMode != "" || o.id != "" && o.timeSlice == "" && o.computeMode == "" {
		return o, fmt.Errorf("Invalid combination of input arguments. %s", seeHelp) //nolint:staticcheck,revive // the real tool's text, for people
	}
	return o, nil
}

// listGPUs numbers boards and instances as a container sees them.
func (t tool) listGPUs(gpus []identity.GPU) {
	for index, g := range gpus {
		fmt.Fprintf(t.out, "GPU %d: %s (UUID: %s)\n", index, g.Name, g.UUID)
		for n, i := range g.Instances {
			fmt.Fprintf(t.out, "  MIG %-12sDevice %2d: (UUID: %s)\n", i.Profile, n, i.UUID)
		}
	}
}

// field is something to query of a board.
type field struct {
	names []string
	unit  string
	value func(identity.Node, identity.GPU, int) string
}

func fields() []field {
	return []field{
		{names: []string{"index"}, value: func(_ identity.Node, _ identity.GPU, index int) string { return fmt.Sprint(index) }},
		{names: []string{"name", "gpu_name"}, value: func(_ identity.Node, g identity.GPU, _ int) string { return g.Name }},
		{names: []string{"uuid", "gpu_uuid"}, value: func(_ identity.Node, g identity.GPU, _ int) string { return g.UUID }},
		{names: []string{"memory.total"}, unit: "MiB", value: func(_ identity.Node, g identity.GPU, _ int) string { return fmt.Sprint(g.MemoryMiB) }},
		{names: []string{"driver_version"}, value: func(n identity.Node, _ identity.GPU, _ int) string { return n.DriverVersion }},
		{names: []string{"pci.bus_id", "gpu_bus_id"}, value: func(_ identity.Node, g identity.GPU, _ int) string {
			return "0000" + strings.ToUpper(g.PCIBusID)
		}},
		{names: []string{"mig.mode.current"}, value: func(_ identity.Node, g identity.GPU, _ int) string {
			return cmp.Or(g.MIGMode, "[N/A]")
		}},
	}
}

func fieldNames() []string {
	var all []string
	for _, f := range fields() {
		all = append(all, f.names...)
	}
	return all
}

func (t tool) queryGPUs(node identity.Node, gpus []identity.GPU, o options) error {
	formats := strings.Split(o.format, ",")
	for _, f := range formats {
		if !slices.Contains([]string{"csv", "noheader", "nounits"}, f) {
			return fmt.Errorf("\"%s\" is not a valid format. %s", f, seeHelp)
		}
	}
	if !slices.Contains(formats, "csv") {
		return fmt.Errorf("\"--format=\" needs csv. %s", seeHelp)
	}
	units := !slices.Contains(formats, "nounits")
	var chosen []field
	var header []string
	for _, name := range strings.Split(o.query, ",") {
		name = strings.TrimSpace(name)
		index := slices.IndexFunc(fields(), func(f field) bool { return slices.Contains(f.names, name) })
		if index < 0 {
			return fmt.Errorf("Field \"%s\" is not a valid field to query.", name) //nolint:staticcheck,revive // the real tool's text, for people
		}
		f := fields()[index]
		chosen = append(chosen, f)
		if f.unit != "" && units {
			name += " [" + f.unit + "]"
		}
		header = append(header, name)
	}
	if !slices.Contains(formats, "noheader") {
		fmt.Fprintln(t.out, strings.Join(header, ", "))
	}
	for index, g := range gpus {
		var row []string
		for _, f := range chosen {
			value := f.value(node, g, index)
			if f.unit != "" && units {
				value += " " + f.unit
			}
			row = append(row, value)
		}
		fmt.Fprintln(t.out, strings.Join(row, ", "))
	}
	return nil
}

// summary is what people see who type nothing but the name.
func (t tool) summary(node identity.Node, gpus []identity.GPU) {
	fmt.Fprintf(t.out, "NVIDIA-SMI %[1]s (simulated)    Driver Version: %[1]s    CUDA Version: %[2]s\n", node.DriverVersion, node.CUDAVersion)
	for index, g := range gpus {
		fmt.Fprintf(t.out, "%3d  %-28s  %s  %7d MiB\n", index, g.Name, strings.ToUpper(g.PCIBusID), g.MemoryMiB)
		for n, i := range g.Instances {
			fmt.Fprintf(t.out, "     MIG %-12s device %d, GPU instance %d, compute instance %d\n", i.Profile, n, i.GPUInstanceID, i.ComputeInstanceID)
		}
	}
}
