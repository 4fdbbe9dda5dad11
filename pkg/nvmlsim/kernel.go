package nvmlsim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"
)

// kernel keeps the state file. Its readers and writers can be many goroutines
// of many processes: a file is never changed but replaced, and who replaces it
// has the lock. The file needs no fsync, because like the instances of real
// hardware it needn't outlive the machine.
type kernel struct {
	dir string
	// changed is called after every change, while the lock is held.
	changed func(before, after *state) error

	writing sync.Mutex
	reading sync.Mutex
	seen    *generation
}

// generation is one content of the state file.
type generation struct {
	// file is kept open so that the file system can't use its inode for a later
	// content: the same inode is then the same content.
	file  *os.File
	info  fs.FileInfo
	data  []byte
	state *state
}

func (k *kernel) path() string { return filepath.Join(k.dir, "state.json") }

// view is the state as it is now. Nobody may change it.
func (k *kernel) view() (*state, error) {
	g, err := k.current()
	if err != nil {
		return nil, err
	}
	return g.state, nil
}

func (k *kernel) current() (*generation, error) {
	k.reading.Lock()
	defer k.reading.Unlock()
	if k.seen != nil {
		info, err := os.Stat(k.path())
		if err != nil {
			return nil, fmt.Errorf("the simulated node is gone: %w", err)
		}
		if os.SameFile(info, k.seen.info) {
			return k.seen, nil
		}
	}
	g, err := load(k.path())
	if err != nil {
		return nil, err
	}
	k.forget()
	k.seen = g
	return g, nil
}

func (k *kernel) forget() {
	if k.seen != nil {
		k.seen.file.Close()
		k.seen = nil
	}
}

func load(path string) (*generation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	g := &generation{file: file}
	if g.info, err = file.Stat(); err == nil {
		if g.data, err = io.ReadAll(file); err == nil {
			g.state, err = decode(g.data)
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("simulated hardware in %s: %w", path, err)
	}
	return g, nil
}

// locked runs f alone among all processes of the node.
func (k *kernel) locked(f func() error) (err error) {
	k.writing.Lock()
	defer k.writing.Unlock()
	lock, err := os.OpenFile(filepath.Join(k.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock(lock, unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock the simulated node: %w", err)
	}
	return f()
}

// errRefused ends a change that NVML refuses: nothing is saved.
var errRefused = errors.New("refused")

// update changes the state if f returns SUCCESS. All processes see the change when it returns.
func (k *kernel) update(f func(*state) nvml.Return) (nvml.Return, error) {
	ret := nvml.SUCCESS
	err := k.locked(func() error {
		g, err := k.current()
		if err != nil {
			return err
		}
		before, after := g.state, g.state.clone()
		if ret = f(after); ret != nvml.SUCCESS {
			return errRefused
		}
		saved, err := k.save(after, g.data)
		if err != nil || !saved {
			return err
		}
		return k.changed(before, after)
	})
	if errors.Is(err, errRefused) {
		return ret, nil
	}
	if err != nil {
		return nvml.ERROR_UNKNOWN, err
	}
	return ret, nil
}

// save replaces the file, unless that would change nothing.
func (k *kernel) save(s *state, old []byte) (bool, error) {
	data, err := s.encode()
	if err != nil || bytes.Equal(data, old) {
		return false, err
	}
	if err := replaceFile(k.path(), data, 0o644); err != nil {
		return false, err
	}
	// Nobody else replaces it meanwhile, so what was written needn't be read.
	file, err := os.Open(k.path())
	if err != nil {
		return false, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return false, err
	}
	k.reading.Lock()
	defer k.reading.Unlock()
	k.forget()
	k.seen = &generation{file: file, info: info, data: data, state: s}
	return true, nil
}

// replaceFile writes a file whole or not at all.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	// The umask may have taken something away.
	if err = errors.Join(err, tmp.Chmod(mode), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
