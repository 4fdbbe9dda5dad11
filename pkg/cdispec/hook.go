package cdispec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// InstallHook copies the hook program into a directory that the host sees at the
// same path, because the container runtime runs hooks on the host, and returns
// where it is then. It is renamed into place: the program that is there may be running.
func InstallHook(program, dir string) (string, error) {
	from, err := os.Open(program)
	if err != nil {
		return "", fmt.Errorf("install the CDI hook: %w", err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.CreateTemp(dir, ".hook-*")
	if err != nil {
		return "", fmt.Errorf("install the CDI hook: %w", err)
	}
	installed := filepath.Join(dir, filepath.Base(program))
	_, err = io.Copy(to, from)
	err = errors.Join(err, to.Chmod(0o755), to.Close())
	if err == nil {
		err = os.Rename(to.Name(), installed)
	}
	if err != nil {
		return "", fmt.Errorf("install the CDI hook: %w", errors.Join(err, os.Remove(to.Name())))
	}
	return installed, nil
}
