{{- define "warmstart.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "warmstart.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmstart.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "warmstart.selector" . }}
{{- end }}

{{- define "warmstart.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "warmstart.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "warmstart.containerSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* The settings: the chart's, unless "settings" has them. */ -}}
{{- define "warmstart.env" -}}
{{- $own := dict "DRAIN_SECONDS" (toString .Values.drainSeconds) "HOST" "0.0.0.0" "PORT" "8000" }}
{{- if .Values.shareStateInRedis }}
{{- $own = merge $own (dict "RESPONSE_CACHE" "redis" "RATE_LIMIT_STORE" "redis" "SIGNING_NONCES" "redis" "IDEMPOTENCY" "redis") }}
{{- else if eq .Values.modelCache.type "image" }}
{{- /* The folder that holds SQLite otherwise is read-only. */}}
{{- $own = merge $own (dict "IDEMPOTENCY" "memory") }}
{{- end }}
{{- if .Values.secrets.keysSecret }}
{{- $own = merge $own (dict "API_KEYS_FILE" "/etc/warmstart/keys.jsonl") }}
{{- end }}
{{- if eq .Values.kind "knative" }}
{{- /* Knative's proxy, in the same pod, is the peer, and names the client. */}}
{{- $own = merge $own (dict "TRUSTED_PROXIES" "127.0.0.0/8") }}
{{- end }}
{{- range $name, $value := merge (dict) .Values.settings $own }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "warmstart.envFrom" -}}
{{- with .Values.secrets.existingSecret }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "warmstart.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if ne .Values.modelCache.type "image" }}
- {name: models, mountPath: /var/lib/warmstart}
{{- end }}
{{- if .Values.secrets.keysSecret }}
- {name: keys, mountPath: /etc/warmstart, readOnly: true}
{{- end }}
{{- end }}

{{- define "warmstart.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- if eq .Values.modelCache.type "volume" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.modelCache.existingClaim | default (printf "%s-models" (include "warmstart.name" .)) }}
{{- else if eq .Values.modelCache.type "ephemeral" }}
- name: models
  emptyDir: {sizeLimit: {{ .Values.modelCache.size }}}
{{- end }}
{{- with .Values.secrets.keysSecret }}
- name: keys
  secret: {secretName: {{ . }}}
{{- end }}
{{- end }}

{{- define "warmstart.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 2
  timeoutSeconds: 2
{{- end }}

{{- /* Pod of a deployment. Takes a dict: root, component, args. */ -}}
{{- define "warmstart.pod" -}}
{{- $root := .root }}
metadata:
  labels:
    {{- include "warmstart.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with $root.Values.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with $root.Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "warmstart.name" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false  # its variables, such as PORT, would be taken for settings
  terminationGracePeriodSeconds: {{ add $root.Values.drainSeconds 20 }}
  securityContext: {{- include "warmstart.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $root.Values.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- $component := .component }}
    {{- range $root.Values.topologySpread.keys }}
    - maxSkew: {{ $root.Values.topologySpread.maxSkew }}
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "warmstart.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $component }}
    {{- end }}
  {{- end }}
  {{- if and (ne $root.Values.modelCache.type "image") $root.Values.modelCache.pull }}
  initContainers:
    - name: pull
      image: {{ include "warmstart.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [sh, -c, 'exec warmstart pull "${MODEL_NAME:-smollm2-135m-instruct}"']
      env: {{- include "warmstart.env" $root | nindent 8 }}
      {{- with include "warmstart.envFrom" $root }}
      envFrom: {{- . | nindent 8 }}
      {{- end }}
      resources: {{- toYaml $root.Values.resources | nindent 8 }}
      securityContext: {{- include "warmstart.containerSecurity" $root | nindent 8 }}
      volumeMounts: {{- include "warmstart.mounts" $root | nindent 8 }}
  {{- end }}
  containers:
    - name: warmstart
      image: {{ include "warmstart.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{- toYaml .args | nindent 8 }}
      ports:
        - {name: http, containerPort: 8000}
      env: {{- include "warmstart.env" $root | nindent 8 }}
      {{- with include "warmstart.envFrom" $root }}
      envFrom: {{- . | nindent 8 }}
      {{- end }}
      {{- include "warmstart.probes" $root | nindent 6 }}
      lifecycle:
        preStop:
          sleep: {seconds: 5}  # until no endpoint names this pod; then SIGTERM drains it
      resources: {{- toYaml $root.Values.resources | nindent 8 }}
      securityContext: {{- include "warmstart.containerSecurity" $root | nindent 8 }}
      volumeMounts: {{- include "warmstart.mounts" $root | nindent 8 }}
  volumes: {{- include "warmstart.volumes" $root | nindent 4 }}
{{- end }}
