package chart

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
)

const root = "../.."

var (
	yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// documents are all Markdown files of the repository, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		for _, path := range paths {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			all[path] = string(data)
		}
	}
	require.Contains(t, all, filepath.Join(root, "docs/configuration.md"))
	return all
}

// The manifests in the documents are what kerf and the API take.
func TestDocumentsParse(t *testing.T) {
	offered := offers{classes(t, ""), extendedResources(t, "")}
	for path, text := range documents(t) {
		for _, match := range yamlBlock.FindAllStringSubmatch(text, -1) {
			block := match[1]
			var kind struct{ Kind string }
			require.NoError(t, yaml.Unmarshal([]byte(block), &kind), "%s:\n%s", path, block)
			switch kind.Kind {
			case "":
				_, err := render(t, block)
				require.NoError(t, err, "%s:\n%s", path, block)
			case configv1alpha1.Kind:
				_, err := configv1alpha1.Parse([]byte(block))
				require.NoError(t, err, "%s:\n%s", path, block)
			case configv1alpha1.FleetKind:
				_, err := configv1alpha1.ParseFleet([]byte(block))
				require.NoError(t, err, "%s:\n%s", path, block)
			default:
				for _, object := range decode(t, block) {
					offered.require(t, path, object)
				}
			}
		}
	}
}

// Every value of the chart is described.
func TestValuesAreDocumented(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	require.NoError(t, err)
	values := map[string]any{}
	require.NoError(t, yaml.Unmarshal(data, &values))
	text := documents(t)[filepath.Join(root, "docs/configuration.md")]
	var check func(prefix string, values map[string]any)
	check = func(prefix string, values map[string]any) {
		for name, value := range values {
			if below, ok := value.(map[string]any); ok && len(below) > 0 && prefix == "" {
				check(name+".", below)
				continue
			}
			require.True(t, strings.Contains(text, "\n| `"+prefix+name+"` |"), "docs/configuration.md lacks %s%s", prefix, name)
		}
	}
	check("", values)
}

func TestExamplesAreDocumented(t *testing.T) {
	text := documents(t)[filepath.Join(root, "docs/examples.md")]
	for _, file := range exampleFiles(t) {
		name, err := filepath.Rel(examplesDir, file)
		require.NoError(t, err)
		require.True(t, strings.Contains(text, "(../deployments/examples/"+name+")"), "docs/examples.md lacks %s", file)
	}
}

// Links lead to files and headings that are there.
func TestLinks(t *testing.T) {
	all := documents(t)
	for path, text := range all {
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(match[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
				_, err := os.Stat(target)
				require.NotErrorIs(t, err, fs.ErrNotExist, "%s links to %s", path, match[1])
			}
			if anchor != "" {
				require.Contains(t, anchors(all[target]), anchor, "%s links to %s", path, match[1])
			}
		}
	}
}

// anchors are the headings of a document as links name them.
func anchors(text string) []string {
	var all []string
	for _, match := range heading.FindAllStringSubmatch(text, -1) {
		name := strings.ToLower(match[1])
		name = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(name, "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}
