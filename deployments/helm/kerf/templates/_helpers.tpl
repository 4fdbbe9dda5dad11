{{- /* Name of everything that belongs to the node plugin. */ -}}
{{- define "kerf.plugin" -}}
{{ printf "%s-plugin" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Cluster-wide objects bear the namespace too: two releases of one name do not share them. */ -}}
{{- define "kerf.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "kerf.plugin" .) }}
{{- end -}}

{{- /* Name of everything that belongs to the controller. */ -}}
{{- define "kerf.controller" -}}
{{ printf "%s-controller" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "kerf.controllerClusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "kerf.controller" .) }}
{{- end -}}

{{- define "kerf.selectorLabels" -}}
app.kubernetes.io/name: kerf
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kerf.labels" -}}
{{ include "kerf.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "kerf.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
