// Package strict decodes the repository's API objects: YAML or JSON, unknown
// and duplicate fields refused with their path, apiVersion and kind checked.
package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Kind reads the type of an object.
func Kind(data []byte) (metav1.TypeMeta, error) {
	var meta metav1.TypeMeta
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return meta, err
	}
	// null and a list are valid JSON that no object is.
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return meta, errors.New("not an object")
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return meta, err
	}
	if meta.APIVersion == "" || meta.Kind == "" {
		return meta, errors.New("apiVersion and kind are required")
	}
	return meta, nil
}

// Decode reads an object of one of the apiVersions and of the kind given into
// obj. The error names every field that the object does not have.
func Decode(data []byte, kind string, apiVersions []string, obj any) error {
	meta, err := Kind(data)
	if err != nil {
		return err
	}
	if meta.Kind != kind || !slices.Contains(apiVersions, meta.APIVersion) {
		return fmt.Errorf("expected %s of %s, got %s of %s", kind, apiVersions[0], meta.Kind, meta.APIVersion)
	}
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	strictErrs, err := kjson.UnmarshalStrict(raw, obj)
	return errors.Join(append(strictErrs, err)...)
}
