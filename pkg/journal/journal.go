package journal

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/json"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Journal is the records below one directory. Several processes may use the
// same directory; who reads or writes a record holds the lock of its claim or GPU.
type Journal struct {
	dir   string
	locks locks
}

const (
	claimsDir    = "claims"
	instancesDir = "instances"
	locksDir     = "locks"
	corruptDir   = "corrupt"
	suffix       = ".json"
)

// Open makes the directory where it is missing and removes nothing.
func Open(dir string) (*Journal, error) {
	for _, sub := range []string{claimsDir, instancesDir, locksDir, corruptDir} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open the journal: %w", err)
		}
	}
	return &Journal{dir: dir, locks: locks{dir: filepath.Join(dir, locksDir)}}, nil
}

// Claim reads a claim's record. ErrNotFound: there is none. CorruptError: there was one.
func (j *Journal) Claim(uid string) (*Claim, error) {
	c := &Claim{}
	return c, j.read(claimsDir, uid, c)
}

// ParseClaim reads a claim's record from where else it was kept, as strictly as Claim does.
func ParseClaim(uid string, data []byte) (*Claim, error) {
	c := &Claim{}
	return c, decode(data, uid, c)
}

// PutClaim writes a claim's record, at once and whole.
func (j *Journal) PutClaim(c *Claim) error {
	c.Version = version
	return j.write(claimsDir, c.UID, c)
}

// DeleteClaim removes a claim's record. One that is not there is no error.
func (j *Journal) DeleteClaim(uid string) error { return j.remove(claimsDir, uid) }

// Claims reads all claims. What cannot be read is in the error, and the rest is still returned.
func (j *Journal) Claims() ([]*Claim, error) {
	return readAll(j, claimsDir, "", j.Claim)
}

// Instance reads the record of the instance at this GPU, profile and placement.
func (j *Journal) Instance(at gpu.Instance) (*Instance, error) {
	return j.instance(instanceKey(at))
}

func (j *Journal) instance(key string) (*Instance, error) {
	i := &Instance{}
	return i, j.read(instancesDir, key, i)
}

// PutInstance writes the record of an instance, at once and whole.
func (j *Journal) PutInstance(i *Instance) error {
	i.Version = version
	return j.write(instancesDir, instanceKey(i.Instance), i)
}

// DeleteInstance removes the record of the instance at this GPU, profile and placement.
func (j *Journal) DeleteInstance(at gpu.Instance) error {
	return j.remove(instancesDir, instanceKey(at))
}

// Instances reads all instances, as Claims does claims.
func (j *Journal) Instances() ([]*Instance, error) {
	return readAll(j, instancesDir, "", j.instance)
}

// InstancesOn reads the instances of one GPU.
func (j *Journal) InstancesOn(gpu string) ([]*Instance, error) {
	return readAll(j, instancesDir, gpu+"_", j.instance)
}

// InstancesOf reads the instances of one claim.
func (j *Journal) InstancesOf(uid string) ([]*Instance, error) {
	quoted, err := stdjson.Marshal(uid)
	if err != nil {
		return nil, err
	}
	all, err := readAll(j, instancesDir, "", func(key string) (*Instance, error) {
		// Most are others': to look for the UID is much faster than to parse.
		data, err := os.ReadFile(filepath.Join(j.dir, instancesDir, key+suffix))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(data, quoted) {
			return nil, ErrNotFound
		}
		return j.instance(key)
	})
	return slices.DeleteFunc(all, func(i *Instance) bool { return i.Claim != uid }), err
}

type record interface{ validate(key string) error }

func (j *Journal) path(sub, key string) (string, error) {
	// Keys come from outside: a UID that is a path must not leave the directory.
	if key == "" || key != filepath.Base(key) || strings.HasPrefix(key, ".") {
		return "", fmt.Errorf("%q cannot name a record", key)
	}
	return filepath.Join(j.dir, sub, key+suffix), nil
}

func (j *Journal) read(sub, key string, into record) error {
	path, err := j.path(sub, key)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	if err := decode(data, key, into); err != nil {
		return j.moveAside(sub, path, err)
	}
	return nil
}

func decode(data []byte, key string, into record) error {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.UnmarshalCaseSensitivePreserveInts(data, &v); err != nil {
		return err
	}
	if v.Version < 1 || v.Version > version {
		return fmt.Errorf("version %d is not one of 1..%d: was it written by a newer kerf?", v.Version, version)
	}
	strict, err := json.UnmarshalStrict(data, into)
	if err := errors.Join(append(strict, err)...); err != nil {
		return err
	}
	return into.validate(key)
}

// moveAside takes a record out of the way, so that it is reported once and blocks nobody.
func (j *Journal) moveAside(sub, path string, cause error) error {
	to := filepath.Join(j.dir, corruptDir, fmt.Sprintf("%s-%d-%s", sub, time.Now().UnixNano(), filepath.Base(path)))
	if err := os.Rename(path, to); err != nil {
		return fmt.Errorf("record %s does not parse (%w) and cannot be moved aside: %w", path, cause, err)
	}
	return &CorruptError{Path: path, MovedTo: to, Err: cause}
}

func (j *Journal) write(sub, key string, r record) error {
	path, err := j.path(sub, key)
	if err != nil {
		return err
	}
	if err := r.validate(key); err != nil {
		return fmt.Errorf("refusing to write record %s: %w", path, err)
	}
	data, err := stdjson.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	// The name is fixed: its writer holds the lock, so a leftover is overwritten by the next and none pile up.
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

func (j *Journal) remove(sub, key string) error {
	path, err := j.path(sub, key)
	if err != nil {
		return err
	}
	for _, p := range []string{path, path + ".tmp"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove from the journal: %w", err)
		}
	}
	return nil
}

// readAll reads the records whose key has the prefix.
func readAll[T any](j *Journal, sub, prefix string, read func(key string) (T, error)) ([]T, error) {
	entries, err := os.ReadDir(filepath.Join(j.dir, sub))
	if err != nil {
		return nil, fmt.Errorf("list the journal: %w", err)
	}
	var all []T
	var errs []error
	for _, e := range entries {
		key, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || !strings.HasPrefix(key, prefix) {
			continue
		}
		r, err := read(key)
		switch {
		case err == nil:
			all = append(all, r)
		case errors.Is(err, ErrNotFound):
			// Deleted between the listing and the reading.
		default:
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}
