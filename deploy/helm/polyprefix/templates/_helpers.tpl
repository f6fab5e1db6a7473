{{- define "polyprefix.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "polyprefix.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "polyprefix.labels" -}}
{{ include "polyprefix.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "polyprefix.image" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{- /* What the server is told beside its secrets, by the names of its settings. */ -}}
{{- define "polyprefix.settings" -}}
{{- $settings := dict "metrics_port" 8001 -}}
{{- range $name, $value := .Values.settings -}}{{- $_ := set $settings ($name | lower) $value -}}{{- end -}}
{{- with .Values.model -}}{{- $_ := set $settings "model" . -}}{{- end -}}
{{- with .Values.store -}}{{- $_ := set $settings "store" . -}}{{- end -}}
{{- range $name, $value := $settings }}
{{ $name }}: {{ $value | quote }}
{{- end -}}
{{- end -}}

{{- /* And its secrets, where there is a bucket. */ -}}
{{- define "polyprefix.registry" -}}
- name: POLYPREFIX_REGISTRY
  valueFrom:
    secretKeyRef: {name: {{ .Values.registrySecret.name | quote }}, key: {{ .Values.registrySecret.key | quote }}}
{{- end -}}

{{- define "polyprefix.storeSecret" -}}
{{- with .Values.storeSecret }}
envFrom:
  - secretRef: {name: {{ . | quote }}}
{{- end }}
{{- end -}}

{{- define "polyprefix.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "polyprefix.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "polyprefix.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: models
  mountPath: /models
  readOnly: {{ ne .Values.modelsClaim "" }}
{{- end -}}

{{- define "polyprefix.volumes" -}}
- name: tmp
  emptyDir: {}
- name: models
  {{- if .Values.modelsClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.modelsClaim }}
    readOnly: true
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}

{{- define "polyprefix.placement" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Pods of one revision alone: those that are about to leave would tilt the scales. */ -}}
{{- define "polyprefix.spread" -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "polyprefix.selector" $.root | nindent 6 }}
  matchLabelKeys: [{{ $.revision }}]
{{- end }}
{{- end -}}
