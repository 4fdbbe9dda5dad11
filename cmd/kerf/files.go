package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/simulate"
)

// errNoFit is the answer "it does not fit", which scripts see as exit code 2.
var errNoFit = &exitError{code: 2}

// readInput reads fleets, manifests and, from files that end in .csv, traces. Classes that no file has are the chart's.
func readInput(files []string, stdin io.Reader) (*simulate.Input, error) {
	in := &simulate.Input{}
	in.Classes = fleet.DefaultClasses(pool.DefaultDriver)
	for _, name := range files {
		read := in.Read
		if strings.HasSuffix(name, ".csv") {
			read = in.ReadTrace
		}
		if err := readFile(name, stdin, read); err != nil {
			return nil, err
		}
	}
	if len(in.Slices) == 0 {
		return nil, errors.New("the files have neither a Fleet nor ResourceSlices")
	}
	return in, nil
}

// readFile gives a file, or the standard input for "-", to a reader.
func readFile(name string, stdin io.Reader, read func(io.Reader) error) error {
	if name == "-" {
		return named("standard input", read(stdin))
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return named(name, read(file))
}

func named(name string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
