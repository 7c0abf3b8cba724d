{{/* Where the model is, and the programs' flags for it. */}}

{{/* `model` as text: a step is a number, in a values file even a float. */}}
{{- define "serving.model" -}}
{{- if kindIs "string" .Values.model -}}
{{ .Values.model }}
{{- else -}}
{{ int64 .Values.model }}
{{- end -}}
{{- end -}}

{{/* claim, s3 or hub. */}}
{{- define "serving.source" -}}
{{- $path := ternary .Values.runDirectory (include "serving.model" .) (ne .Values.run "") -}}
{{- if hasPrefix "s3://" $path -}}
s3
{{- else if or .Values.run .Values.claimName -}}
claim
{{- else -}}
hub
{{- end -}}
{{- end -}}

{{/* A description of the model for people. */}}
{{- define "serving.modelTitle" -}}
{{- $model := default "last" (include "serving.model" .) -}}
{{- if not .Values.run -}}
{{ $model }}
{{- else if has $model (list "last" "best") -}}
the {{ $model }} verified model {{ ternary "at its start " "" (eq (include "serving.engine" .) "sglang") }}of run {{ .Values.run }}
{{- else -}}
step {{ $model }} of run {{ .Values.run }}
{{- end -}}
{{- end -}}

{{/* Flags of `trainyard_serving verify` and of the apps that load the model themselves, as a list. */}}
{{- define "serving.modelFlags" -}}
{{- $source := include "serving.source" . -}}
{{- $model := include "serving.model" . -}}
{{- $flags := list -}}
{{- if .Values.run -}}
{{- $directory := default .Values.run .Values.runDirectory -}}
{{- $flags = list "--run-dir" (ternary $directory (printf "/trainyard/%s" $directory) (eq $source "s3")) -}}
{{- with $model -}}
{{- $flags = concat $flags (list "--step" .) -}}
{{- end -}}
{{- else -}}
{{- $flags = list "--model" (ternary $model (printf "/trainyard/%s" $model) (eq $source "s3")) -}}
{{- end -}}
{{- if eq $source "s3" -}}
{{- $flags = concat $flags (list "--cache-dir" "/models/s3") -}}
{{- end -}}
{{- with .Values.digest -}}
{{- $flags = concat $flags (list "--digest" .) -}}
{{- end -}}
{{- toJson $flags -}}
{{- end -}}

{{/* Whether the app itself reads the model's files: to compute, or to determine the digest. */}}
{{- define "serving.appReadsModel" -}}
{{- if and (ne .Values.app "vision") (ne (include "serving.source" .) "hub") -}}
true
{{- end -}}
{{- end -}}

{{/* Flags for the app's engine and model, as a list. */}}
{{- define "serving.appFlags" -}}
{{- $flags := list -}}
{{- if and (ne (include "serving.engine" .) "torch") (ne .Values.app "vision") -}}
{{- $flags = list "--engine" (include "serving.engine" .) -}}
{{- end -}}
{{- if ne (include "serving.engine" .) "sglang" -}}
{{- $flags = concat $flags (include "serving.modelFlags" . | fromJsonArray) -}}
{{- else -}}
{{- $flags = concat $flags (list "--sglang-url" "http://127.0.0.1:30000") -}}
{{- if include "serving.appReadsModel" . -}}
{{- $flags = concat $flags (list "--model" (include "serving.sglangModel" .)) -}}
{{- end -}}
{{- end -}}
{{- toJson $flags -}}
{{- end -}}

{{/* Where SGLang finds the model: a Hub id, or the link that the verify container creates. */}}
{{- define "serving.sglangModel" -}}
{{- ternary (include "serving.model" .) "/models/current" (eq (include "serving.source" .) "hub") -}}
{{- end -}}

{{/* The model's name for SGLang and its clients. */}}
{{- define "serving.modelName" -}}
{{- $settings := .Values.settings -}}
{{- $given := ternary $settings.modelName $settings.servedModelName (eq .Values.app "vision") -}}
{{- default (default (include "serving.model" .) .Values.run) $given -}}
{{- end -}}

{{/* Whether the pod needs scratch space for models. */}}
{{- define "serving.scratch" -}}
{{- if or (eq (include "serving.engine" .) "sglang") (eq (include "serving.source" .) "s3") -}}
true
{{- end -}}
{{- end -}}

{{- define "serving.modelMounts" -}}
{{- if eq (include "serving.source" .) "claim" -}}
- {name: storage, mountPath: /trainyard, readOnly: true}
{{ end -}}
{{- if include "serving.scratch" . -}}
- {name: models, mountPath: /models}
{{ end -}}
{{- end -}}

{{/* Credentials and address of the S3 endpoint. */}}
{{- define "serving.s3Credentials" -}}
{{- if and (eq (include "serving.source" .) "s3") .Values.s3.secretName -}}
envFrom:
  - secretRef: {name: {{ .Values.s3.secretName | quote }}}
{{- end -}}
{{- end -}}

{{- define "serving.s3Environment" -}}
{{- if and (eq (include "serving.source" .) "s3") .Values.s3.endpoint -}}
- {name: AWS_ENDPOINT_URL, value: {{ .Values.s3.endpoint | quote }}}
{{- end -}}
{{- end -}}

{{/* Port of the S3 endpoint. */}}
{{- define "serving.s3Port" -}}
{{- $url := urlParse (default "https://aws" .Values.s3.endpoint) -}}
{{- $default := ternary "80" "443" (eq $url.scheme "http") -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default $default -}}
{{- end -}}
