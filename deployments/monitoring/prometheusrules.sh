#!/bin/sh
# Prints the rule files beside it as PrometheusRules, for the Prometheus operator. The argument is the label release by
# which your Prometheus selects: prometheusrules.sh prometheus | kubectl apply --namespace monitoring --filename -
set -eu
cd "$(dirname "$0")"
for name in rules settings alerts; do
  printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n'
  printf 'metadata:\n  name: kerf-%s\n  labels: {release: "%s"}\nspec:\n' "$name" "${1:-prometheus}"
  sed 's/^/  /' "$name.yaml"
done
