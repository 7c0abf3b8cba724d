{{/* The keys of `settings` for each app; a test compares them with the program's. */}}
{{- define "serving.settingsOf" -}}
generate: [accessLog, answerSeconds, bodySeconds, corsOrigins, device, drainSeconds, headerSeconds, maxBatchSize, maxBodyBytes, maxPrompts, maxQueue, maxRunning, maxTokens, pathPrefix, pollSeconds, protectHealth, protectMetrics, require, servedModelName, threads]
classify: [accessLog, bodySeconds, checkTexts, corsOrigins, device, drainSeconds, headerSeconds, maxBatchSize, maxBodyBytes, maxQueue, maxTexts, minAccuracy, pathPrefix, pollSeconds, precision, protectHealth, protectMetrics, require, threads]
embed: [accessLog, bodySeconds, corsOrigins, device, drainSeconds, headerSeconds, maxBatchSize, maxBatchTokens, maxBodyBytes, maxQueue, maxTexts, pathPrefix, pollSeconds, protectHealth, protectMetrics, require, servedModelName, threads]
vision: [accessLog, allowPrivateHosts, allowedPorts, answerSeconds, bodySeconds, corsOrigins, decoderMemoryBytes, decoderSeconds, decoders, drainSeconds, fetchSeconds, headerSeconds, maxBodyBytes, maxImageBytes, maxImagePixels, maxImageSide, maxImages, maxQueue, maxRunning, maxTokens, modelName, pathPrefix, pollSeconds, protectHealth, protectMetrics]
{{- end -}}

{{/* `settings` as environment variables: maxQueue is TRAINYARD_SERVING_MAX_QUEUE. */}}
{{- define "serving.settings" -}}
{{- range $key, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
{{- $text := toString $value }}
{{- if kindIs "slice" $value }}{{ $text = join "," $value }}{{ end }}
{{- /* Numbers in a values file are floats, which would be rendered as 1.048576e+06. */}}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ $text = toString (int64 $value) }}{{ end }}
- {name: TRAINYARD_SERVING_{{ snakecase $key | upper }}, value: {{ $text | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* The Secret with the API key, if there is a key; likewise with that of administrators. */}}
{{- define "serving.apiKeySecret" -}}
{{- include "serving.keySecret" (dict "root" . "key" .Values.apiKey) -}}
{{- end -}}

{{- define "serving.adminApiKeySecret" -}}
{{- include "serving.keySecret" (dict "root" . "key" .Values.adminApiKey) -}}
{{- end -}}

{{- define "serving.keySecret" -}}
{{- if .key.value -}}
{{ include "serving.fullname" .root }}
{{- else -}}
{{ .key.existingSecret }}
{{- end -}}
{{- end -}}

{{- define "serving.apiKeyEnvironment" -}}
{{- with include "serving.apiKeySecret" . }}
- name: TRAINYARD_SERVING_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.apiKey.secretKey | quote }}}
{{- end }}
{{- with include "serving.adminApiKeySecret" . }}
- name: TRAINYARD_SERVING_ADMIN_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.adminApiKey.secretKey | quote }}}
{{- end }}
{{- end -}}

{{/* A probe. If its path requires the key, a program in the pod has to send it. */}}
{{- define "serving.probe" -}}
{{- if .root.Values.settings.protectHealth -}}
exec:
  command: [python, -c, {{ .root.Files.Get "files/probe.py" | toJson }}, {{ printf "http://127.0.0.1:%s%s" (include "serving.port" .root) .path | quote }}]
{{- else -}}
httpGet: {path: {{ .path }}, port: http}
{{- end -}}
{{- end -}}

{{/* Ports on the internet that the pod may reach: of image URLs, and of the Hub. */}}
{{- define "serving.outsidePorts" -}}
{{- if eq .Values.app "vision" -}}
{{ default "80,443" .Values.settings.allowedPorts }}{{ if eq (include "serving.source" .) "hub" }},443{{ end }}
{{- else -}}
443
{{- end -}}
{{- end -}}
