package nvml

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrReplaced says that the driver is no longer the one that the process began with.
var ErrReplaced = errors.New("the NVIDIA driver was replaced")

// Driver is the driver that a process has loaded, so that it can be told from one
// that is installed in its place.
type Driver struct {
	library, root, versionFile string
	file                       os.FileInfo
	version                    []byte
}

// LoadedDriver finds the NVML library that this process has mapped or, where there
// is none, as with simulated boards, that of the driver root. Below hostRoot is
// the host's /proc. It is nil where there is no library to be seen.
func LoadedDriver(driverRoot, hostRoot string) *Driver {
	d := &Driver{root: driverRoot, library: mappedLibrary("/proc/self/maps"), versionFile: filepath.Join(hostRoot, "proc/driver/nvidia/version")}
	if d.library == "" {
		// Without an error it is where the link leads, with one there is none.
		d.library, _ = filepath.EvalSymlinks(LibraryPath(driverRoot))
	}
	var err error
	if d.file, err = os.Stat(d.library); err != nil {
		return nil
	}
	// Where it cannot be read, only the library tells.
	d.version, _ = os.ReadFile(d.versionFile)
	return d
}

func mappedLibrary(maps string) string {
	text, err := os.ReadFile(maps)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if i := strings.Index(line, "/"); i >= 0 && strings.Contains(line[i:], "/libnvidia-ml.so") {
			return strings.TrimSpace(line[i:])
		}
	}
	return ""
}

// Watch returns ErrReplaced when another library or kernel module has come in the
// place of those that were loaded, and nil when the context ends. While a driver is
// being installed there is none for a time, which is waited for: to begin anew
// would only fail.
func (d *Driver) Watch(ctx context.Context, every time.Duration) error {
	if d == nil {
		<-ctx.Done()
		return nil
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if what := d.replaced(); what != "" {
			return fmt.Errorf("%w (%s): starting anew, so that nothing of the old one is used", ErrReplaced, what)
		}
	}
}

func (d *Driver) replaced() string {
	if version, err := os.ReadFile(d.versionFile); err == nil && d.version != nil && !bytes.Equal(version, d.version) {
		return fmt.Sprintf("the kernel module is now %q", firstLine(version))
	}
	now, err := os.Stat(d.library)
	if err == nil && os.SameFile(now, d.file) {
		return ""
	}
	next := LibraryPath(d.root)
	if _, err := os.Stat(next); err != nil && filepath.IsAbs(next) {
		return ""
	}
	if !filepath.IsAbs(next) && filepath.Clean(d.root) != "/" {
		return "" // There is none below the root now.
	}
	return d.library + " is another file now"
}

func firstLine(text []byte) string {
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	return string(line)
}
