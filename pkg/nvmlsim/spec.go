package nvmlsim

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// MaxGPUs is how many boards a simulated node can have. Toggles need as many
// minor numbers again, and the driver's table of capabilities ends at 32 boards.
const MaxGPUs = gpu.MaxBoards

// Spec describes a simulated node.
type Spec struct {
	// Boards are the models, one a GPU, in the order of their PCI bus ids.
	Boards []gpu.Board
	// StateDir is the directory that is the node: absolute, made on first use. Best
	// on a tmpfs, where a change costs half a millisecond and not several.
	StateDir string
	// Seed makes the UUIDs of this node differ from those of others.
	Seed string
	// MIG starts the boards that can with the MIG mode on. It counts on first use of the directory only.
	MIG bool

	// The rest is about this process' use of the node, and not kept in its state.

	// Faults is the absolute path of a faults file, empty for none.
	Faults string
	// Latency and Lock are empty for their defaults, LatencyNone and LockPerGPU.
	Latency Latency
	Lock    Lock
}

// Parse reads a specification such as "4xH200-SXM-141GB,2xL40S,state=/run/sim,seed=node-a,mig=on,faults=/run/faults.yaml,latency=typical,lock=global".
// The state directory is required, all else that has a name is optional.
func Parse(text string) (Spec, error) {
	var s Spec
	seen := map[string]bool{}
	for _, part := range strings.Split(text, ",") {
		key, value, named := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch {
		case !named:
			err = s.addBoards(key)
		case seen[key]:
			err = fmt.Errorf("%s= is given twice", key)
		case value == "":
			err = fmt.Errorf("%s= has no value", key)
		case key == "state":
			s.StateDir, err = filepath.Abs(value)
		case key == "seed":
			s.Seed = value
		case key == "mig" && (value == "on" || value == "off"):
			s.MIG = value == "on"
		case key == "mig":
			err = fmt.Errorf("mig=%s is neither on nor off", value)
		case key == "faults":
			s.Faults, err = filepath.Abs(value)
		case key == "latency":
			s.Latency, err = oneOf(key, Latency(value), LatencyNone, LatencyTypical)
		case key == "lock":
			s.Lock, err = oneOf(key, Lock(value), LockPerGPU, LockGlobal)
		default:
			err = fmt.Errorf("%s= is unknown: known are state=, seed=, mig=, faults=, latency= and lock=", key)
		}
		if err != nil {
			return Spec{}, fmt.Errorf("simulated node %q: %w", text, err)
		}
		seen[key] = named
	}
	var err error
	switch {
	case len(s.Boards) == 0:
		err = errors.New("it has no boards, such as 8xH100-SXM5-80GB")
	case s.StateDir == "":
		err = errors.New("state=DIR is required: the simulated hardware lives there, across restarts")
	}
	if err != nil {
		return Spec{}, fmt.Errorf("simulated node %q: %w", text, err)
	}
	return s, nil
}

func oneOf[T ~string](key string, value T, known ...T) (T, error) {
	if !slices.Contains(known, value) {
		return "", fmt.Errorf("%s=%s is none of %v", key, value, known)
	}
	return value, nil
}

// addBoards reads "8xH100-SXM5-80GB" or, for one, "L40S".
func (s *Spec) addBoards(text string) error {
	boards, err := gpu.ParseBoards(text)
	if err != nil {
		return err
	}
	if len(s.Boards)+len(boards) > MaxGPUs {
		return fmt.Errorf("%q: a node has 1 to %d boards", text, MaxGPUs)
	}
	s.Boards = append(s.Boards, boards...)
	return nil
}

// String is the specification in a form that Parse reads.
func (s Spec) String() string {
	text := boardList(names(s.Boards)) + ",state=" + s.StateDir
	if s.Seed != "" {
		text += ",seed=" + s.Seed
	}
	if s.MIG {
		text += ",mig=on"
	}
	if s.Faults != "" {
		text += ",faults=" + s.Faults
	}
	if s.Latency != "" {
		text += ",latency=" + string(s.Latency)
	}
	if s.Lock != "" {
		text += ",lock=" + string(s.Lock)
	}
	return text
}

func names(boards []gpu.Board) []string {
	all := make([]string, len(boards))
	for i, b := range boards {
		all[i] = b.Name
	}
	return all
}

// boardList joins runs of a model: "8xH100-SXM5-80GB,2xL40S".
func boardList(names []string) string {
	var runs []string
	for from := 0; from < len(names); {
		to := from + 1
		for to < len(names) && names[to] == names[from] {
			to++
		}
		runs = append(runs, fmt.Sprintf("%dx%s", to-from, names[from]))
		from = to
	}
	return strings.Join(runs, ",")
}
