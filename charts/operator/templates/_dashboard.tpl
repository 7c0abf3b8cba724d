{{- define "operator.dashboardName" -}}
{{- printf "%s-dashboard" (include "operator.fullname" . | trunc 53 | trimSuffix "-") -}}
{{- end -}}

{{/* Different from the operator's, so that its Service does not select these pods. */}}
{{- define "operator.dashboardSelector" -}}
app.kubernetes.io/name: trainyard-dashboard
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "operator.dashboardLabels" -}}
{{ include "operator.dashboardSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: trainyard
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The port of a URL: its own, or its scheme's default. */}}
{{- define "operator.portOf" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}
