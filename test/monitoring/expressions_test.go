package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

var (
	recorded = regexp.MustCompile(`\bkerf:[a-z_]+:[a-z_]+\b`)
	exported = regexp.MustCompile(`\bkerf_[a-z_]+\b`)
	counter  = regexp.MustCompile(`\bDCGM_FI_[A-Z_]+\b`)
	promql   = regexp.MustCompile("(?ms)^```promql\n(.*?)^```$")
	// What Grafana puts in for the variables of the dashboard.
	variables = strings.NewReplacer("$namespace", "inference")
)

type dashboard struct {
	Panels []struct {
		ID          int
		Title, Type string
		Targets     []struct{ Expr, RefID string }
	}
}

func shippedDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	require.NoError(t, json.Unmarshal(read(t, filepath.Join(monitoring, "dashboard.json")), &d))
	return d
}

// expressions are all that is shipped or shown, by where they are.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for i, r := range shippedRules(t) {
		all[fmt.Sprintf("rule %d, %s%s", i, r.Record, r.Alert)] = r.Expr
	}
	for _, panel := range shippedDashboard(t).Panels {
		for _, target := range panel.Targets {
			all["panel "+panel.Title+", "+target.RefID] = variables.Replace(target.Expr)
		}
	}
	for path, objects := range manifests(t) {
		for _, object := range objects {
			if scaled, ok := object.(*scaledObject); ok {
				for i, trigger := range scaled.Spec.Triggers {
					if trigger.Type == "prometheus" {
						all[fmt.Sprintf("%s, trigger %d", path, i)] = trigger.Metadata["query"]
					}
				}
			}
		}
	}
	for i, match := range promql.FindAllStringSubmatch(string(read(t, document)), -1) {
		all[fmt.Sprintf("%s, block %d", document, i)] = match[1]
	}
	return all
}

func TestExpressionsParse(t *testing.T) {
	kinds := map[string]int{}
	var rules []map[string]string
	for where, expr := range expressions(t) {
		kinds[strings.Fields(where)[0]]++
		require.NotEmpty(t, expr, where)
		rules = append(rules, map[string]string{"record": fmt.Sprintf("e%d", len(rules)), "expr": expr})
	}
	require.Len(t, kinds, 4, "of rules, panels, triggers and the document: %v", kinds)
	// promtool has no command that parses an expression only; as rules it takes them all at once.
	file, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "all", "rules": rules}}})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "expressions.yaml")
	require.NoError(t, os.WriteFile(path, file, 0o644))
	promtool(t, "check", "rules", path)
}

// Whatever is read is recorded by a rule, exported by the plugin or the controller, or collected by the exporter as it is configured.
func TestExpressionsReadWhatIsThere(t *testing.T) {
	records := map[string]bool{}
	for _, r := range shippedRules(t) {
		records[r.Record] = true
	}
	documented := string(read(t, "../../docs/configuration.md")) + string(read(t, "../../docs/scaling.md"))
	var values struct{ CustomMetrics string }
	require.NoError(t, yaml.Unmarshal(read(t, filepath.Join(monitoring, "dcgm-exporter-values.yaml")), &values))
	for where, expr := range expressions(t) {
		for _, name := range recorded.FindAllString(expr, -1) {
			require.True(t, records[name], "%s: no rule records %s", where, name)
		}
		for _, name := range exported.FindAllString(expr, -1) {
			require.True(t, strings.Contains(documented, "`"+name+"`"), "%s: no document has %s", where, name)
		}
		for _, name := range counter.FindAllString(expr, -1) {
			require.Contains(t, values.CustomMetrics, name+",", where)
		}
	}
}

func TestDashboardHasItsFivePanels(t *testing.T) {
	var titles []string
	for _, panel := range shippedDashboard(t).Panels {
		titles = append(titles, panel.Title)
		require.NotEmpty(t, panel.Targets, panel.Title)
	}
	require.Equal(t, []string{"Utilization", "Memory", "Scaling", "Node provisioning", "Cost"}, titles)
}
