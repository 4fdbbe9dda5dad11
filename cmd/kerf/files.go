package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/pool"
)

// exitError is an error with an exit code of its own. It says nothing where the
// output has said it.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }

func (e exitError) Unwrap() error { return e.err }

// errNoFit is the answer "it does not fit", which scripts see as exit code 2.
var errNoFit = exitError{2, errors.New("")}

// readObjects reads manifests. Classes that no file has are the chart's.
func readObjects(files []string, stdin io.Reader) (*fleet.Objects, error) {
	all := &fleet.Objects{}
	all.Classes = fleet.DefaultClasses(pool.DefaultDriver)
	for _, name := range files {
		if err := readFile(name, stdin, all.Read); err != nil {
			return nil, err
		}
	}
	return all, nil
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
