package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-project/kerf/pkg/claims"
)

// metadata is what a container can read about its device, in a file that the helper
// library mounts: the attributes that are published, and the UUID, which a MIG
// instance has only now.
func (d *Driver) metadata(p claims.Prepared) *kubeletplugin.DeviceMetadata {
	for _, s := range d.pool.Resources().Pools[d.node.Name].Slices {
		for _, device := range s.Devices {
			if device.Name != p.Name {
				continue
			}
			attributes := map[string]resourceapi.DeviceAttribute{}
			for name, value := range device.Attributes {
				attributes[string(name)] = value
			}
			if p.Instance != nil && len(p.Instance.Compute) > 0 {
				attributes[string(d.node.Attribute("uuid"))] = resourceapi.DeviceAttribute{StringValue: &p.Instance.Compute[0].UUID}
			}
			return &kubeletplugin.DeviceMetadata{Attributes: attributes}
		}
	}
	return nil
}

// Metadata are the files with which the helper library tells containers about
// their devices. The library removes those of a claim that the kubelet releases,
// and nobody those of a claim that is released without the kubelet's asking, or
// whose release was cut off by the end of the process.
type Metadata struct {
	// Driver is the driver's name, CDIRoot the directory of the CDI specs, and
	// PluginDir the directory that the library has for itself.
	Driver, CDIRoot, PluginDir string
	Records                    Records
}

// Sweep removes the files of claims that have no record. The names are the library's.
func (m Metadata) Sweep() error {
	prefix := m.Driver + "_metadata_"
	specs, err := filepath.Glob(filepath.Join(m.CDIRoot, prefix+"*.json"))
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(m.PluginDir, "dra-device-metadata", "*"))
	if err != nil {
		return err
	}
	// Only now: a claim's record comes before its files.
	claims, err := m.Records.Claims()
	if err = tolerated(err); err != nil {
		return err
	}
	names, uids := map[string]bool{}, map[string]bool{}
	for _, c := range claims {
		names[c.Namespace+"_"+c.Name], uids[c.UID] = true, true
	}
	var errs []error
	for _, spec := range specs {
		uid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(spec), prefix), "_")
		if !uids[uid] {
			errs = append(errs, remove(os.Remove, spec))
		}
	}
	for _, dir := range dirs {
		if !names[filepath.Base(dir)] {
			errs = append(errs, remove(os.RemoveAll, dir))
		}
	}
	return errors.Join(errs...)
}

// remove ignores that the library was faster.
func remove(how func(string) error, path string) error {
	if err := how(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the metadata of a claim that has ended: %w", err)
	}
	return nil
}
