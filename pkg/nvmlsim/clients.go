package nvmlsim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hold is a session's grip on a board, which stands in the way of a toggle. It
// is a shared file lock, so it ends with its process at the latest.
type hold struct{ file *os.File }

func holdPath(dir string, index int) string {
	return filepath.Join(dir, "holds", fmt.Sprint(index))
}

func newHold(dir string, index int) (*hold, error) {
	path := holdPath(dir, index)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(file, unix.LOCK_SH); err != nil {
		file.Close()
		return nil, err
	}
	return &hold{file}, nil
}

func (h *hold) release() {
	if h != nil {
		h.file.Close()
	}
}

// heldByOthers reports whether anybody but h holds the board.
func heldByOthers(dir string, index int, h *hold) (bool, error) {
	if h != nil {
		if err := flock(h.file, unix.LOCK_UN); err != nil {
			return false, err
		}
		defer flock(h.file, unix.LOCK_SH) //nolint:errcheck // it was locked before, and nobody waits on it exclusively
	}
	other, err := os.OpenFile(holdPath(dir, index), os.O_RDWR|os.O_CREATE, 0o644)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer other.Close()
	err = flock(other, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
