package main

import (
	"reflect"
	"testing"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// object reads an object from YAML, with numbers as properties have them.
func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: fields}
}

func TestNormalizeWritesAsTheServerDoes(t *testing.T) {
	pod := normalize(object(t, `
apiVersion: v1
kind: Pod
metadata: {name: p, uid: x, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {hostNetwork: false, containers: [{name: c, resources: {requests: {cpu: "0.4", memory: 1024Mi}}}]}
`))
	requests := field(item(field(pod.Object, "spec", "containers").([]any), 0), "resources", "requests")
	if want := map[string]any{"cpu": "400m", "memory": "1Gi"}; !reflect.DeepEqual(requests, want) {
		t.Errorf("requests %v, want %v", requests, want)
	}
	if want := map[string]any{"name": "p"}; !reflect.DeepEqual(pod.Object["metadata"], want) {
		t.Errorf("metadata %v, want %v", pod.Object["metadata"], want)
	}

	secret := normalize(object(t, `
apiVersion: v1
kind: Secret
stringData: {a: hush}
data: {a: b2xk, b: "b2\nxk"}
`))
	if want := map[string]any{"a": "aHVzaA==", "b": "b2xk"}; !reflect.DeepEqual(secret.Object["data"], want) {
		t.Errorf("data %v, want %v", secret.Object["data"], want)
	}
	if secret.Object["stringData"] != nil {
		t.Error("stringData is still there")
	}
}

func TestUnknownValuesAreLeftAlone(t *testing.T) {
	in := resource.PropertyMap{
		"apiVersion": resource.NewStringProperty("v1"),
		"kind":       resource.NewStringProperty("Pod"),
		"metadata":   resource.MakeComputed(resource.NewStringProperty("")),
		"spec": resource.NewObjectProperty(resource.PropertyMap{
			"hostname": resource.MakeSecret(resource.MakeComputed(resource.NewStringProperty(""))),
		}),
	}
	out := normalize(toObject(in))
	if !hasUnknown(out.Object["metadata"]) || !hasUnknown(field(out.Object, "spec", "hostname")) {
		t.Errorf("unknown values were lost: %v", out.Object)
	}
	setMetadata(out, "x", "name")
	setMetadata(out, "true", "annotations", "a")
	if !hasUnknown(out.Object["metadata"]) {
		t.Error("unknown metadata was overwritten")
	}
}

func TestPruneKeepsWhatTheInputsHad(t *testing.T) {
	live := object(t, `{a: 1, b: {c: 2, d: 3}, e: [{f: 4, g: 5}, {f: 6}], h: null}`).Object
	shape := object(t, `{b: {c: 0}, e: [{f: 0}], h: 1, i: 1}`).Object
	want := object(t, `{b: {c: 2}, e: [{f: 4}], h: null}`).Object
	if got := prune(live, shape); !reflect.DeepEqual(got, any(want)) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestCheckpointKeepsSecretsSecret(t *testing.T) {
	inputs := object(t, `{apiVersion: v1, kind: ConfigMap, data: {a: hush, b: plain}, list: [1, hush]}`)
	props := toProperties(inputs)
	props["data"].ObjectValue()["a"] = resource.MakeSecret(resource.NewStringProperty("hush"))
	props["list"].ArrayValue()[1] = resource.MakeSecret(resource.NewStringProperty("hush"))

	state := checkpoint(inputs, inputs, props, "v1", "me")
	for name, part := range map[string]resource.PropertyMap{"outputs": state, "inputs": state[keyInputs].ObjectValue()} {
		data := part["data"].ObjectValue()
		if !data["a"].IsSecret() || data["b"].IsSecret() || !part["list"].IsSecret() {
			t.Errorf("%s: %v", name, part)
		}
	}
	back, live := parseCheckpoint(state)
	if !reflect.DeepEqual(back.Object, inputs.Object) || text(field(live.Object, "data", "a")) != "hush" {
		t.Errorf("not the same again: %v, %v", back.Object, live.Object)
	}

	secret := object(t, `{apiVersion: v1, kind: Secret, data: {a: aHVzaA==}}`)
	if state := checkpoint(secret, secret, toProperties(secret), "v1", "me"); !state["data"].IsSecret() {
		t.Error("data of a Secret is in the open")
	}
}

func TestCustomResourceDefinitionKeys(t *testing.T) {
	props := resource.NewPropertyMapFromMap(map[string]any{"x_kubernetes_int_or_string": true, "snake_case": true})
	dashes := toObject(props)
	if want := map[string]any{"x-kubernetes-int-or-string": true, "snake_case": true}; !reflect.DeepEqual(dashes.Object, want) {
		t.Errorf("%v, want %v", dashes.Object, want)
	}
	if back := toProperties(dashes); !reflect.DeepEqual(back, props) {
		t.Errorf("%v, want %v", back, props)
	}
}

func urn(token string) resource.URN {
	return resource.URN("urn:pulumi:stack::project::" + token + "::name")
}

func TestTypeTokens(t *testing.T) {
	for token, want := range map[string][2]string{
		"kubernetes:core/v1:Namespace":                        {"v1", "Namespace"},
		"kubernetes:apps/v1:StatefulSet":                      {"apps/v1", "StatefulSet"},
		"kubernetes:rbac.authorization.k8s.io/v1:ClusterRole": {"rbac.authorization.k8s.io/v1", "ClusterRole"},
		"kubernetes:yaml:ConfigFile":                          {"", ""},
	} {
		apiVersion, kind, err := apiVersionAndKind(urn(token))
		if apiVersion != want[0] && err == nil || kind != want[1] || (err != nil) != (want[0] == "") {
			t.Errorf("%s: %s %s %v", token, apiVersion, kind, err)
		}
	}
	if !isPatch(urn("kubernetes:core/v1:NodePatch"), "Node") || isPatch(urn("kubernetes:core/v1:Node"), "Node") {
		t.Error("Patch resources are not told from others")
	}
}

func TestCompare(t *testing.T) {
	old := object(t, `{a: 1, same: {b: [1, 2]}, gone: x, list: [{p: 1}, {p: 2}], was: {map: 1}}`).Object
	new := object(t, `{a: 2, same: {b: [1.0, 2]}, list: [{p: 1, q: 1}], was: text, new: {z: 1}, nothing: null}`).Object
	new["unknown"] = resource.Computed{Element: resource.NewStringProperty("")}
	want := map[string]pulumirpc.PropertyDiff_Kind{
		"a":         pulumirpc.PropertyDiff_UPDATE,
		"gone":      pulumirpc.PropertyDiff_DELETE,
		"list[0].q": pulumirpc.PropertyDiff_ADD,
		"list[1]":   pulumirpc.PropertyDiff_DELETE,
		"was":       pulumirpc.PropertyDiff_UPDATE,
		"new":       pulumirpc.PropertyDiff_ADD,
		"unknown":   pulumirpc.PropertyDiff_ADD,
	}
	got := compare(old, new, func(path, any) bool { return false })
	for at, diff := range got {
		if w, ok := want[at]; !ok || w != diff.Kind || (w == pulumirpc.PropertyDiff_DELETE) != diff.InputDiff {
			t.Errorf("%s: %v", at, diff)
		}
		delete(want, at)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

func TestPathsAreWrittenAsPulumiDoes(t *testing.T) {
	if got := (path{"metadata", "labels", `a.b/"c`, "d", 3}).String(); got != `metadata.labels["a.b/\"c"].d[3]` {
		t.Error(got)
	}
}

func TestIgnoredChanges(t *testing.T) {
	diffs := map[string]*property{"spec.replicas": {}, "spec.template.spec": {}, "data": {}}
	if err := ignore(diffs, []string{"spec.replicas", "data"}); err != nil || len(diffs) != 1 {
		t.Errorf("%v %v", diffs, err)
	}
	if err := ignore(diffs, []string{"["}); err == nil {
		t.Error("a broken path is taken")
	}
}

func TestWhatNeedsANewObject(t *testing.T) {
	const immutableMap = `{apiVersion: v1, kind: ConfigMap, immutable: true}`
	for _, test := range []struct {
		token, object string
		config        config
		at            path
		value         any
		want          bool
	}{
		{token: "core/v1:Pod", object: `{apiVersion: v1, kind: Pod}`, at: path{"spec", "containers", 0, "image"}, want: true},
		{token: "core/v1:Pod", object: `{apiVersion: v1, kind: Pod}`, at: path{"spec", "tolerations", 0}},
		{token: "core/v1:Pod", object: `{apiVersion: v1, kind: Pod}`, at: path{"metadata", "labels", "a"}},
		{token: "core/v1:Pod", object: `{apiVersion: v1, kind: Pod}`, at: path{"metadata", "name"}, want: true},
		{token: "apps/v1:StatefulSet", object: `{apiVersion: apps/v1, kind: StatefulSet}`, at: path{"spec", "serviceName"}, want: true},
		{token: "apps/v1:StatefulSet", object: `{apiVersion: apps/v1, kind: StatefulSet}`, at: path{"spec", "replicas"}},
		{token: "apps/v1:StatefulSet", object: `{apiVersion: apps/v1, kind: StatefulSet}`,
			at: path{"spec"}, value: map[string]any{"serviceName": "x"}, want: true},
		{token: "apps/v1:StatefulSet", object: `{apiVersion: apps/v1, kind: StatefulSet}`,
			at: path{"spec", "selector", "matchLabels", "a"}, want: true},
		{token: "apps/v1:StatefulSet", object: `{apiVersion: apps/v1, kind: StatefulSet}`,
			at: path{"spec", "persistentVolumeClaimRetentionPolicy", "whenScaled"}},
		{token: "core/v1:PersistentVolume", object: `{apiVersion: v1, kind: PersistentVolume}`, at: path{"spec", "local", "path"}, want: true},
		{token: "core/v1:PersistentVolume", object: `{apiVersion: v1, kind: PersistentVolume}`,
			at: path{"spec"}, value: map[string]any{"local": "x"}, want: true},
		{token: "core/v1:PersistentVolume", object: `{apiVersion: v1, kind: PersistentVolume}`, at: path{"spec", "capacity", "storage"}},
		{token: "core/v1:ConfigMap", object: `{apiVersion: v1, kind: ConfigMap}`, at: path{"data", "a"}, want: true},
		{token: "core/v1:ConfigMap", object: `{apiVersion: v1, kind: ConfigMap}`, config: config{configMapMutable: true}, at: path{"data", "a"}},
		{token: "core/v1:ConfigMap", object: immutableMap, config: config{configMapMutable: true}, at: path{"data", "a"}, want: true},
		{token: "core/v1:Secret", object: `{apiVersion: v1, kind: Secret}`, config: config{secretMutable: true}, at: path{"data", "a"}},
		{token: "core/v1:Secret", object: `{apiVersion: v1, kind: Secret}`, config: config{secretMutable: true}, at: path{"type"}, want: true},
		{token: "storage.k8s.io/v1:StorageClass", object: `{apiVersion: storage.k8s.io/v1, kind: StorageClass}`, at: path{"provisioner"}, want: true},
		{token: "core/v1:PodPatch", object: `{apiVersion: v1, kind: Pod}`, at: path{"spec", "hostname"}},
		{token: "core/v1:PodPatch", object: `{apiVersion: v1, kind: Pod}`, at: path{"metadata", "namespace"}, want: true},
	} {
		immutable := test.config.immutable(urn("kubernetes:"+test.token), object(t, test.object))
		if got := immutable(test.at, test.value); got != test.want {
			t.Errorf("%s %v (%v): %v", test.token, test.at, test.config, got)
		}
	}
}
