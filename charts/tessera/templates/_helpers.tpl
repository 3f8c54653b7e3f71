{{- define "tessera.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/part-of: tessera
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Where an image is: (dict "image" .Values.image.operator "root" $). */ -}}
{{- define "tessera.image" -}}
{{- $repository := list .root.Values.image.registry .image.repository | compact | join "/" -}}
{{- if .image.digest -}}
{{ $repository }}@{{ .image.digest }}
{{- else -}}
{{ $repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "tessera.pullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "tessera.priorityClassName" -}}
{{- $name := .own | default (ternary .root.Values.priorityClass.name "" .root.Values.priorityClass.create) -}}
{{- with $name -}}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "tessera.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tessera.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Whether a value named by its path, such as "rbac.aggregate", is on: (dict "path" … "root" $). */ -}}
{{- define "tessera.enabled" -}}
{{- $value := .root.Values -}}
{{- range splitList "." .path -}}
{{- $value = index $value . -}}
{{- end -}}
{{- if $value }}true{{ end -}}
{{- end }}

{{- /* A value named by its path: (dict "path" … "root" $). */ -}}
{{- define "tessera.value" -}}
{{- $value := .root.Values -}}
{{- range splitList "." .path -}}
{{- $value = index $value . -}}
{{- end -}}
{{- $value -}}
{{- end }}

{{- /* NetworkPolicyPeers of address ranges, without the blocked ones: (dict "cidrs" … "blocked" …). */ -}}
{{- define "tessera.addresses" -}}
{{- $blocked := .blocked -}}
{{- range $index, $cidr := .cidrs }}
{{- if $index }}{{ print "\n" }}{{ end -}}
- ipBlock:
    cidr: {{ $cidr | quote }}
    {{- if has $cidr (list "0.0.0.0/0" "::/0") }}
    {{- $except := list }}
    {{- range $blocked }}
    {{- if eq (contains ":" .) (contains ":" $cidr) }}{{ $except = append $except . }}{{ end }}
    {{- end }}
    {{- with $except }}
    except: {{ toJson . }}
    {{- end }}
    {{- end }}
{{- end }}
{{- end }}

{{- /* The rest of a pod with one container of the operator's image, whose command follows. */ -}}
{{- define "tessera.hookPod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
{{- with include "tessera.pullSecrets" .root }}
{{ . }}
{{- end }}
{{- with .root.Values.operator.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.operator.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "tessera.podSecurity" . | nindent 2 }}
volumes:
- name: tmp
  emptyDir: {sizeLimit: 16Mi}
containers:
- name: hook
  image: {{ include "tessera.image" (dict "image" .root.Values.image.operator "root" .root) | quote }}
  imagePullPolicy: {{ .root.Values.image.operator.pullPolicy }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 512Mi}
  securityContext:
    {{- include "tessera.containerSecurity" . | nindent 4 }}
  volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{- /* Annotations of what a hook needs, before the hook itself. */ -}}
{{- define "tessera.hook" -}}
helm.sh/hook: {{ get (dict "test" "test" "pools" "post-install,post-upgrade" "uninstall" "pre-delete") . }}
helm.sh/hook-weight: "-10"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- /* Name servers and the API server. */ -}}
{{- define "tessera.egressAlways" -}}
{{- with .dns -}}
- to:
  {{- toYaml . | nindent 2 }}
  ports:
  - {port: 53, protocol: UDP}
  - {port: 53, protocol: TCP}
{{ end -}}
{{ include "tessera.egress" (dict "to" .apiServer "blocked" .blocked) }}
{{- end }}

{{- define "tessera.egress" -}}
{{- if .to.cidrs -}}
- to:
  {{- include "tessera.addresses" (dict "cidrs" .to.cidrs "blocked" .blocked) | nindent 2 }}
  ports:
  {{- range .to.ports }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
{{- end }}
