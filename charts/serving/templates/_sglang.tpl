{{/*
SGLang as a sidecar: it starts before the gateway and is terminated after the gateway has drained.
It listens on loopback only, which the kubelet's httpGet cannot reach, so its probes are programs in
its container.
*/}}
{{- define "serving.sglang" -}}
{{- $v := .Values -}}
{{- $hub := eq (include "serving.source" .) "hub" -}}
- name: sglang
  restartPolicy: Always
  image: {{ printf "%s:%s" $v.sglang.image.repository $v.sglang.image.tag | quote }}
  imagePullPolicy: {{ $v.sglang.image.pullPolicy }}
  command:
    {{- toYaml $v.sglang.command | nindent 4 }}
  args:
    - --model-path
    - {{ include "serving.sglangModel" . | quote }}
    {{- with $v.sglang.revision }}
    - --revision
    - {{ . | quote }}
    {{- end }}
    - --served-model-name
    - {{ include "serving.modelName" . | quote }}
    - --host
    - 127.0.0.1
    - --port
    - "30000"
    {{- with $v.sglang.args }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    - {name: USER, value: trainyard}  # PyTorch looks up the user, who is not in /etc/passwd
    - {name: HF_HOME, value: /models/hub}
    {{- if not $hub }}
    - {name: HF_HUB_OFFLINE, value: "1"}
    {{- else if $v.sglang.hubToken.secretName }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef: {name: {{ $v.sglang.hubToken.secretName | quote }}, key: {{ $v.sglang.hubToken.secretKey | quote }}}
    {{- end }}
    {{- with $v.sglang.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  terminationMessagePolicy: FallbackToLogsOnError
  startupProbe:
    {{- include "serving.sglangProbe" (dict "path" "/ready" "seconds" 10) | nindent 4 }}
    periodSeconds: 5
    failureThreshold: {{ divf $v.sglang.startupSeconds 5 | ceil | int }}
  # /health makes SGLang compute a token, so a GPU that hangs is detected.
  livenessProbe:
    {{- include "serving.sglangProbe" (dict "path" "/health" "seconds" 25) | nindent 4 }}
    periodSeconds: 30
    failureThreshold: 4
  securityContext:
    {{- include "serving.securityContext" . | nindent 4 }}
  resources:
    {{- toYaml $v.sglang.resources | nindent 4 }}
  volumeMounts:
    {{- include "serving.modelMounts" . | trim | nindent 4 }}
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{- define "serving.sglangProbe" -}}
exec:
  command: [python3, -c, "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:30000{{ .path }}', timeout={{ sub .seconds 5 }})"]
timeoutSeconds: {{ .seconds }}
{{- end -}}
