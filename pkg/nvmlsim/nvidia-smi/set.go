package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// What can be set, in the order of the numbers that the real tool knows them by.
var (
	timeSlices   = []string{"Default", "Short", "Medium", "Long"}
	computeModes = []string{"DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS"}
)

// settings is what can be set of a board, empty for what is left as it is.
type settings struct {
	timeSlice, computeMode string
}

var errNoPermission = errors.New("Insufficient Permissions") //nolint:staticcheck,revive // the real tool's text, for people

// readSettings reads the numbers or names that the command line gives.
func readSettings(o options) (settings, error) {
	var s settings
	if o.timeSlice != "" {
		n, err := strconv.Atoi(o.timeSlice)
		if err != nil || n < 0 || n >= len(timeSlices) {
			return s, fmt.Errorf("%q is no time slice: 0=default, 1=short, 2=medium, 3=long. %s", o.timeSlice, seeHelp)
		}
		s.timeSlice = timeSlices[n]
	}
	if o.computeMode != "" {
		n, err := strconv.Atoi(o.computeMode)
		if err != nil {
			n = slices.Index(computeModes, o.computeMode)
		}
		if n < 0 || n >= len(computeModes) {
			return s, fmt.Errorf("%q is no compute mode of %q. %s", o.computeMode, computeModes, seeHelp)
		}
		s.computeMode = computeModes[n]
	}
	return s, nil
}

// set changes the boards with that UUID or index, all where it is empty. Only on
// the node itself is the state of its hardware there: a container is refused, as
// it is by a real driver.
func (t tool) set(id string, s settings) (int, error) {
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(t.state), "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return exitNoPermission, fmt.Errorf("Unable to change GPU %s: %w", id, errNoPermission) //nolint:staticcheck,revive // the real tool's text, for people
	}
	if err != nil {
		return exitUnknown, err
	}
	defer lock.Close()
	// The lock of everybody who changes the state. It is let go when the file is closed.
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return exitUnknown, err
	}
	// What this program does not know of the state stays as it is.
	var state map[string]json.RawMessage
	var boards []map[string]json.RawMessage
	data, err := os.ReadFile(t.state)
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err == nil {
		err = json.Unmarshal(state["gpus"], &boards)
	}
	if err != nil {
		return exitUnknown, err
	}
	found := false
	for index, board := range boards {
		var is struct {
			UUID      string
			MIG, Lost bool
		}
		whole, err := json.Marshal(board)
		if err == nil {
			err = json.Unmarshal(whole, &is)
		}
		if err != nil {
			return exitUnknown, err
		}
		if id != "" && id != is.UUID && id != strconv.Itoa(index) {
			continue
		}
		found = true
		switch {
		case is.Lost:
			return exitLost, fmt.Errorf("Unable to change GPU %s: GPU is lost", is.UUID) //nolint:staticcheck,revive // the real tool's text, for people
		case is.MIG:
			return exitNotSupported, fmt.Errorf("Unable to change GPU %s: Not Supported in MIG mode", is.UUID) //nolint:staticcheck,revive // the real tool's text, for people
		}
		for key, value := range map[string]string{"timeSlice": s.timeSlice, "computeMode": s.computeMode} {
			if value != "" {
				board[key] = json.RawMessage(strconv.Quote(value))
			}
		}
		fmt.Fprintf(t.out, "GPU %s: %s%s is set.\n", is.UUID, s.timeSlice, s.computeMode)
	}
	if !found {
		return exitNotFound, errors.New(notFoundText) //nolint:staticcheck // the text of NVIDIA's program
	}
	if state["gpus"], err = json.Marshal(boards); err == nil {
		data, err = json.Marshal(state)
	}
	// Whole or not at all, and a new file: who has read the old one tells them apart by their inodes.
	if err == nil {
		err = os.WriteFile(t.state+".tmp", data, 0o644)
	}
	if err == nil {
		err = os.Rename(t.state+".tmp", t.state)
	}
	if err != nil {
		return exitUnknown, err
	}
	return exitOK, nil
}
