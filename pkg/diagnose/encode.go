package diagnose

import (
	"encoding/json"
	"io"

	"sigs.k8s.io/yaml"
)

// WriteJSON writes the report as docs/diagnose.schema.json describes it.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// WriteYAML writes what WriteJSON does, as YAML.
func (r *Report) WriteYAML(w io.Writer) error {
	text, err := yaml.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
