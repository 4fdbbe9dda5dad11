package diagnose_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"

	"github.com/kerf-project/kerf/pkg/diagnose"
)

func schema(t *testing.T) *spec.Schema {
	t.Helper()
	text, err := os.ReadFile("../../docs/diagnose.schema.json")
	require.NoError(t, err)
	s := &spec.Schema{}
	require.NoError(t, json.Unmarshal(text, s))
	return s
}

func check(t *testing.T, s *spec.Schema, text []byte) error {
	t.Helper()
	var value any
	require.NoError(t, json.Unmarshal(text, &value))
	return validate.NewSchemaValidator(s, nil, "", strfmt.Default).Validate(value).AsError()
}

// Every report that is kept is as the schema says, and the schema refuses what is not.
func TestSchema(t *testing.T) {
	s := schema(t)
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(t, err)
	require.Len(t, files, len(theTen())+1, "those of the ten nodes and of the self-check")
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, check(t, s, text), file)
		for _, spoiled := range [][2]string{
			{`"use": "`, `"use": "x`}, {`"status": "ok"`, `"status": "good"`}, {`"at": "2026`, `"at": "x2026`}, {`"version": 1`, `"version": 2`},
			{`"slices": `, `"pieces": `}, {`"cause"`, `"because"`},
		} {
			require.Contains(t, string(text), spoiled[0])
			require.Error(t, check(t, s, []byte(strings.Replace(string(text), spoiled[0], spoiled[1], 1))), "%s: %v", file, spoiled)
		}
	}
}

// The schema has the fields that the report has, and no others.
func TestSchemaIsComplete(t *testing.T) {
	var compare func(path string, is reflect.Type, s *spec.Schema)
	compare = func(path string, is reflect.Type, s *spec.Schema) {
		for is.Kind() == reflect.Slice || is.Kind() == reflect.Pointer {
			if is.Kind() == reflect.Slice {
				s = s.Items.Schema
			}
			is = is.Elem()
		}
		if is.Kind() != reflect.Struct || len(s.Properties) == 0 {
			return
		}
		fields := map[string]bool{}
		for i := range is.NumField() {
			name, options, _ := strings.Cut(is.Field(i).Tag.Get("json"), ",")
			property, ok := s.Properties[name]
			require.True(t, ok, "%s.%s is not in the schema", path, name)
			require.Equal(t, options == "", contains(s.Required, name), "%s.%s: required", path, name)
			fields[name] = true
			compare(path+"."+name, is.Field(i).Type, &property)
		}
		for name := range s.Properties {
			require.True(t, fields[name], "%s.%s is not in the report", path, name)
		}
	}
	compare("report", reflect.TypeFor[diagnose.Report](), schema(t))
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}
