package nvml

import (
	"os"
	"path/filepath"
)

// libraryDirs are where distributions and driver containers put the driver's libraries.
var libraryDirs = []string{
	"usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu",
	"lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu",
}

// LibraryPath is where the NVML library of a driver root is, or its bare name,
// which leaves it to the dynamic linker: for the root "/", and where it is not
// below the root.
func LibraryPath(driverRoot string) string {
	const name = "libnvidia-ml.so.1"
	if filepath.Clean(driverRoot) == "/" {
		return name
	}
	for _, dir := range libraryDirs {
		path := filepath.Join(driverRoot, dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return name
}
