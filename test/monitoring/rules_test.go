package monitoring

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

const (
	monitoring  = "../../deployments/monitoring"
	autoscaling = "../../deployments/autoscaling"
	document    = "../../docs/monitoring.md"
)

// rule is a recording rule or an alert.
type rule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

type ruleFile struct {
	Groups []struct {
		Name, Interval string
		Rules          []rule
	}
}

// shippedRules are the rules of all files.
func shippedRules(t *testing.T) []rule {
	t.Helper()
	var all []rule
	for _, name := range []string{"rules.yaml", "settings.yaml", "alerts.yaml"} {
		var file ruleFile
		require.NoError(t, yaml.UnmarshalStrict(read(t, filepath.Join(monitoring, name)), &file), name)
		for _, group := range file.Groups {
			all = append(all, group.Rules...)
		}
	}
	require.NotEmpty(t, all)
	return all
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}

// promtool runs the program of that name, which comes with Prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	require.NoError(t, err, "these tests need promtool: install Debian's package prometheus, or run make packages as root")
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestRulesAreAccepted(t *testing.T) {
	args := []string{"check", "rules", "--lint-fatal"}
	for _, name := range []string{"rules.yaml", "settings.yaml", "alerts.yaml"} {
		args = append(args, filepath.Join(monitoring, name))
	}
	promtool(t, args...)
}

// What each rule gives, series by series.
func TestRulesGiveWhatTheyShould(t *testing.T) {
	promtool(t, "test", "rules", filepath.Join(monitoring, "tests/rules_test.yaml"))
}

// No rule without an expectation of its own, and none that the document does not explain.
func TestEveryRuleIsTestedAndDocumented(t *testing.T) {
	var units struct {
		Tests []struct {
			Expressions []struct {
				Expr    string
				Samples []any `json:"exp_samples"`
			} `json:"promql_expr_test"`
			Alerts []struct {
				Name     string `json:"alertname"`
				Expected []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		}
	}
	require.NoError(t, yaml.Unmarshal(read(t, filepath.Join(monitoring, "tests/rules_test.yaml")), &units))
	tested := map[string]bool{}
	for _, test := range units.Tests {
		for _, expression := range test.Expressions {
			for _, name := range recorded.FindAllString(expression.Expr, -1) {
				tested[name] = tested[name] || len(expression.Samples) > 0
			}
		}
		for _, alert := range test.Alerts {
			tested[alert.Name] = tested[alert.Name] || len(alert.Expected) > 0
		}
	}
	text := string(read(t, document))
	for _, r := range shippedRules(t) {
		name := r.Record + r.Alert
		require.True(t, tested[name], "%s has no unit test that expects a value", name)
		require.Contains(t, text, "`"+name+"`")
	}
}

// The labels by which the rules keep what claims hold are those that the plugin exports.
func TestClaimLabelsAreThePlugins(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| `kerf_claim_device_info` \\|.*$").
		FindString(string(read(t, "../../docs/configuration.md")))
	require.NotEmpty(t, row)
	for _, r := range shippedRules(t) {
		if r.Record != "kerf:claim_device:info" {
			continue
		}
		labels := regexp.MustCompile(`by \((.*?)\)`).FindStringSubmatch(r.Expr)
		require.Len(t, labels, 2)
		for label := range strings.SplitSeq(labels[1], ", ") {
			require.Contains(t, row, "`"+label+"`")
		}
		return
	}
	require.Fail(t, "no rule kerf:claim_device:info")
}
