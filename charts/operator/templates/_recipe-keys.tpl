{{- /*
The spec of the ValidatingAdmissionPolicy about keys of config: recipe -> group of settings ("": the
config itself) -> keys, of the built-in recipes (policies/recipes.json, by `make crd`) and of
admissionPolicy.recipes. It says what trainyard_api.recipes says, word for word.

A CRD can't: its CEL rules see nothing of an object whose fields are not declared, and declared
fields can't depend on the recipe.
*/ -}}

{{- define "operator.recipeKeys" -}}
{{- $builtIn := .Files.Get "policies/recipes.json" | fromJson -}}
{{- range $recipe, $_ := .Values.admissionPolicy.recipes -}}
{{- if hasKey $builtIn $recipe -}}
{{- fail (printf "admissionPolicy.recipes.%s: a built-in recipe has this name; remove it" $recipe) -}}
{{- end -}}
{{- end -}}
{{- merge (dict) .Values.admissionPolicy.recipes $builtIn | toJson -}}
{{- end -}}

{{- define "operator.celList" -}}
['{{ join "', '" . }}']
{{- end -}}

{{- define "operator.recipePolicy" -}}
{{- $recipes := include "operator.recipeKeys" . | fromJson -}}
{{- $groups := dict -}}
{{- $unknown := list -}}
{{- $lines := list -}}
{{- range $keys := $recipes }}{{ range $group, $_ := $keys }}{{ $_ := set $groups $group true }}{{ end }}{{ end -}}
# The trainer checks its settings again: an error in here, or a server that can't evaluate it, must
# block nobody. Deletions, statuses and scaling are never looked at.
failurePolicy: Ignore
matchConstraints:
  resourceRules:
    - apiGroups: [trainyard.dev]
      apiVersions: [v1alpha1]
      operations: [CREATE, UPDATE]
      resources: [trainingruns, scalingstudies]
matchConditions:
  # What is stored can be edited, whatever an older release has let through.
  - name: the-config-is-new
    expression: >-
      oldObject == null
      || object.spec.?config != oldObject.spec.?config
      || object.spec.?template.?spec.?config != oldObject.spec.?template.?spec.?config
      || object.spec.?matrix != oldObject.spec.?matrix
  # Another image may have another version of the built-in recipes. Those of the values are of images
  # of their own.
  - name: the-image-is-the-operators
    expression: >-
      [object.spec.?template.?spec.orValue(object.spec)].all(run,
      {{- with .Values.admissionPolicy.recipes }}
      run.?recipe.orValue('') in {{ include "operator.celList" (keys . | sortAlpha) }} ||
      {{- end }}
      !has(run.image) && !run.?podTemplate.?spec.?containers.orValue([]).exists(each,
      each.?name.orValue('') == 'trainer' && has(each.image)))
      && !object.spec.?matrix.orValue({}).exists(path,
      path in ['image', 'recipe'] || path.startsWith('podTemplate'))
variables:
  - name: run
    expression: dyn(object).spec.?template.?spec.orValue(dyn(object).spec)
  - name: config
    expression: variables.run.?config.orValue({})
  # Settings in a study's matrix.
  - name: paths
    expression: >-
      dyn(object).spec.?matrix.orValue({}).filter(path, path.startsWith('config.'))
      .map(path, path.substring(7))
  # The recipe's keys, by group of settings.
  - name: known
    expression: >-
      {
      {{- range $recipe, $keys := $recipes }}
      '{{ $recipe }}': {
      {{- range $group, $names := $keys }}
      '{{ $group }}': {{ include "operator.celList" $names }},
      {{- end }}
      },
      {{- end }}
      }[?variables.run.?recipe.orValue('')].orValue({})
  - name: places
    expression: "[{{ untilStep 0 40 1 | join ", " }}]"
  {{- range $group, $_ := $groups }}
  {{- $name := $group | empty | ternary "" (printf "_%s" $group) }}
  {{- $prefix := $group | empty | ternary "" (printf "%s." $group) }}
  {{- $unknown = append $unknown (printf "variables.unknown%s" $name) }}
  {{- $lines = append $lines (printf "variables.lines%s" $name) }}
  - name: unknown{{ $name }}
    expression: >-
      !('{{ $group }}' in variables.known) ? [] : (
      {{- if $group }}
      (type(variables.config[?'{{ $group }}'].orValue(0)) == map
      ? variables.config['{{ $group }}'].map(key, key) : [])
      + variables.paths.filter(path, path.startsWith('{{ $prefix }}')).map(path, path.split('.')[1])
      {{- else }}
      variables.config.map(key, key)
      + variables.paths.map(path, path.split('.')[0])
      {{- end -}}
      ).filter(key, !(key in variables.known['{{ $group }}']))
  - name: lines{{ $name }}
    expression: >-
      variables.unknown{{ $name }}.map(key, 'config.{{ $prefix }}' + key + ': unknown key'
      + [variables.places.filter(at, at + 2 <= size(key)).map(at, key.substring(at, at + 2))]
      .map(pairs, [variables.known['{{ $group }}'].map(name, 200
      * pairs.filter(pair, name.contains(pair)).size() / (size(key) + size(name) - 1))]
      .map(scores, scores.max() < 50
      ? ' (known: ' + variables.known['{{ $group }}'].join(', ') + ')'
      : '; did you mean ' + variables.known['{{ $group }}'][scores.indexOf(scores.max())] + '?'
      )[0])[0])
  {{- end }}
validations:
  - expression: ({{ join " + " $unknown }}).size() == 0
    message: "config has keys that the recipe does not know: `trainyard validate` names them"
    messageExpression: ({{ join " + " $lines }}).join('; ')
{{- end -}}
