{{- define "operator.fullname" -}}
{{- $name := default "operator" .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if hasSuffix $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc (int (sub 62 (len $name)))) $name -}}
{{- end -}}
{{- end -}}

{{- define "operator.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "operator.labels" -}}
{{ include "operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: trainyard
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the account to use when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "operator.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "operator.trainerImage" -}}
{{ .Values.trainerImage.repository }}:{{ default .Chart.AppVersion .Values.trainerImage.tag }}
{{- end -}}

{{- /* Empty: none. A trainer image with a name of its own says nothing about where the agent's is. */ -}}
{{- define "operator.agentImage" -}}
{{- /* Values that an older release kept (helm upgrade --reuse-values) have no agentImage. */ -}}
{{- $agent := default (dict "enabled" true) .Values.agentImage -}}
{{- $repository := $agent.repository -}}
{{- if and (not $repository) (hasSuffix "/trainer" .Values.trainerImage.repository) -}}
{{- $repository = printf "%s/agent" (trimSuffix "/trainer" .Values.trainerImage.repository) -}}
{{- end -}}
{{- if and $agent.enabled $repository -}}
{{ $repository }}:{{ coalesce $agent.tag .Values.trainerImage.tag .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "operator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "operator.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{/* The operator's rights on the objects of runs. */}}
{{- define "operator.rules" -}}
- apiGroups: [trainyard.dev]
  resources: [trainingruns]
  verbs: [get, list, watch, create, delete]  # create, delete: for studies; delete: also for ttlSecondsAfterFinished
- apiGroups: [trainyard.dev]
  resources: [scalingstudies]
  verbs: [get, list, watch]
- apiGroups: [trainyard.dev]
  resources: [trainingruns/status, scalingstudies/status]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods/log]  # the last line of a failed worker
  verbs: [get]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create, update]  # update: the owner, when storage.whenDeleted changes
- apiGroups: [""]
  resources: [events]  # list: why a pod cannot start
  verbs: [list, create]
- apiGroups: [scheduling.volcano.sh, scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [get, create, patch]
{{- end -}}
