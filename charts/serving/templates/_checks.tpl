{{/* Refuses values that do not fit together, and says what to change. */}}
{{- define "serving.check" -}}
{{- $v := .Values -}}
{{- $model := include "serving.model" . -}}
{{- $ofRun := regexMatch "^(last|best|[0-9]+)$" $model -}}
{{- $engine := include "serving.engine" . -}}
{{- $engines := dict "generate" (list "torch" "sglang") "classify" (list "torch" "onnx") "embed" (list "torch") "vision" (list "sglang") -}}
{{- if not (has $engine (get $engines $v.app)) -}}
{{- fail (printf "engine: app %s has no engine %s: set engine to %s" $v.app $engine (join " or " (get $engines $v.app))) -}}
{{- end -}}

{{- if and (not $v.run) (not $model) -}}
{{- if eq $v.app "vision" -}}
{{- fail "model: name the vision-language model to serve, for example --set model=Qwen/Qwen2-VL-7B-Instruct" -}}
{{- end -}}
{{- fail "run: name the TrainingRun to serve, for example --set run=shakespeare (or one model with --set model=...)" -}}
{{- end -}}
{{- if and $v.run (eq $v.app "vision") -}}
{{- fail "run: no recipe trains a vision-language model: set model instead" -}}
{{- end -}}
{{- if and $v.run $model (not $ofRun) -}}
{{- fail (printf "model: %s: with run, set it to last, best or the number of a step; for this model, leave run empty" $model) -}}
{{- end -}}
{{- if and (not $v.run) $ofRun -}}
{{- fail (printf "model: %s is one of a run's models: set run, too" $model) -}}
{{- end -}}
{{- if and (not $v.run) $v.runDirectory -}}
{{- fail "runDirectory: applies only to run: put the path into model" -}}
{{- end -}}

{{- $source := include "serving.source" . -}}
{{- if and $v.claimName (eq $source "s3") -}}
{{- fail "claimName: the model is at s3://: leave claimName empty" -}}
{{- end -}}
{{- if and (eq $source "claim") (hasPrefix "/" $model) -}}
{{- fail (printf "model: %s: give the path on the claim %s without the leading /" $model $v.claimName) -}}
{{- end -}}
{{- if eq $source "hub" -}}
{{- if ne $engine "sglang" -}}
{{- fail (printf "model: %s: only engine sglang fetches from the Hub; for a path on a volume, set claimName" $model) -}}
{{- end -}}
{{- if not (regexMatch "^[A-Za-z0-9][\\w.-]*(/[A-Za-z0-9][\\w.-]*)?$" $model) -}}
{{- fail (printf "model: %s is not a Hub id; for a path on a volume, set claimName" $model) -}}
{{- end -}}
{{- if $v.digest -}}
{{- fail "digest: a model from the Hub is not checked against a digest: pin its commit with sglang.revision" -}}
{{- end -}}
{{- else if $v.sglang.revision -}}
{{- fail "sglang.revision: applies only to a Hub id: pin this model by digest, or by its step in model" -}}
{{- end -}}
{{- if and (ne $source "s3") (or $v.s3.secretName $v.s3.endpoint) -}}
{{- fail "s3: applies only to a model at s3://: leave s3.secretName and s3.endpoint empty" -}}
{{- end -}}

{{- $known := get (include "serving.settingsOf" . | fromYaml) $v.app -}}
{{- $foreign := list -}}
{{- range $key := keys $v.settings | sortAlpha -}}
{{- if not (has $key $known) -}}
{{- $foreign = append $foreign $key -}}
{{- end -}}
{{- end -}}
{{- if $foreign -}}
{{- fail (printf "settings: app %s has no %s" $v.app (join ", " $foreign)) -}}
{{- end -}}
{{- if and (eq (toString $v.settings.precision) "int8") (ne $engine "onnx") -}}
{{- fail "settings.precision: int8 needs ONNX Runtime: set engine to onnx" -}}
{{- end -}}

{{- if and $v.apiKey.value $v.apiKey.existingSecret -}}
{{- fail "apiKey: value and existingSecret are both set: leave one of them empty" -}}
{{- end -}}
{{- if and $v.adminApiKey.value $v.adminApiKey.existingSecret -}}
{{- fail "adminApiKey: value and existingSecret are both set: leave one of them empty" -}}
{{- end -}}
{{- if and (include "serving.adminApiKeySecret" .) (eq $engine "sglang") -}}
{{- fail "adminApiKey: engine sglang has no rollback: leave it empty" -}}
{{- end -}}
{{- if and $v.apiKey.value (eq $v.apiKey.value $v.adminApiKey.value) -}}
{{- fail "adminApiKey.value: must differ from apiKey.value, which all clients have" -}}
{{- end -}}
{{- if and (eq (include "serving.apiKeySecret" .) (include "serving.adminApiKeySecret" .)) (include "serving.apiKeySecret" .) (eq $v.apiKey.secretKey $v.adminApiKey.secretKey) -}}
{{- fail "adminApiKey.secretKey: must differ from apiKey.secretKey in the same Secret" -}}
{{- end -}}
{{- if not (include "serving.apiKeySecret" .) -}}
{{- range $key := list "protectHealth" "protectMetrics" -}}
{{- if get $v.settings $key -}}
{{- fail (printf "settings.%s: has no effect without a key: set apiKey.value or apiKey.existingSecret" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.metrics.serviceMonitor.enabled $v.settings.protectMetrics (contains "," $v.apiKey.value) -}}
{{- fail "metrics.serviceMonitor: Prometheus would send apiKey.value as one key: use a single key" -}}
{{- end -}}

{{- if eq $v.autoscaling.kind "cpu" -}}
{{- if eq $engine "sglang" -}}
{{- fail "autoscaling.kind: cpu does not measure a GPU's load: use queue" -}}
{{- end -}}
{{- if not (get (default dict $v.resources.requests) "cpu") -}}
{{- fail "autoscaling.kind: cpu needs resources.requests.cpu, of which it is a percentage" -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.autoscaling.kind "queue") (not $v.autoscaling.queue.serverAddress) -}}
{{- fail "autoscaling.queue.serverAddress: set the address of Prometheus for KEDA, for example http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling: minReplicas %v is more than maxReplicas %v" $v.autoscaling.minReplicas $v.autoscaling.maxReplicas) -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: name the host, for example --set ingress.host=shakespeare.example.org" -}}
{{- end -}}
{{- end -}}
