package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/tokens"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"spdk-k8s/offline/plugins/internal/plugintest"
)

// released says that it is the released plugin that is tested.
var released = os.Getenv("PLUGINS_UNDER_TEST") != ""

// fixture is a plugin that works on the cluster, and a namespace of the test's own.
type fixture struct {
	*testing.T
	*testCluster
	plugin    *plugintest.Plugin
	namespace string
}

func setUp(t *testing.T, config map[string]any) *fixture {
	t.Helper()
	c := testClusterFor(t)
	f := &fixture{T: t, testCluster: c, plugin: plugintest.Start(t)}
	all := map[string]any{"kubeconfig": c.kubeconfig}
	for key, value := range config {
		all[key] = value
	}
	if err := f.plugin.Use("kubernetes", plugintest.Map(all)); err != nil {
		t.Fatal(err)
	}
	made, err := c.client.Resource(namespaces).Create(context.Background(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"generateName": "test-"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.namespace = made.GetName()
	t.Cleanup(func() {
		_ = c.client.Resource(namespaces).Delete(context.Background(), f.namespace, metav1.DeleteOptions{})
	})
	return f
}

// resource names a resource by its object, in YAML; NS stands for the test's namespace.
func (f *fixture) resource(text string) (*plugintest.Resource, resource.PropertyMap) {
	f.Helper()
	o := object(f.T, strings.ReplaceAll(text, "NS", f.namespace))
	apiVersion := o.GetAPIVersion()
	if !strings.Contains(apiVersion, "/") {
		apiVersion = "core/" + apiVersion
	}
	token := tokens.Type("kubernetes:" + apiVersion + ":" + o.GetKind())
	return f.plugin.Resource(token, "res"), resource.NewPropertyMapFromMap(o.Object)
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// live reads an object, nil if there is none.
func (f *fixture) live(r schema.GroupVersionResource, name string) *unstructured.Unstructured {
	f.Helper()
	namespace := f.namespace
	if r == nodes || r == namespaces {
		namespace = ""
	}
	got, err := f.client.Resource(r).Namespace(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	f.must(err)
	return got
}

// create is Create with a time limit of one's own.
func (f *fixture) create(r *plugintest.Resource, inputs resource.PropertyMap, limit time.Duration) error {
	f.Helper()
	r.Inputs = r.Checked(inputs)
	resp, err := f.plugin.Create(context.Background(), plugin.CreateRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), Properties: r.Inputs, Timeout: limit.Seconds(),
	})
	r.ID, r.Outputs = resp.ID, resp.Properties
	return err
}

// reasons are what the engine shows of an object that was made but is not ready.
func reasons(t *testing.T, err error) string {
	t.Helper()
	var failed *plugin.InitError
	if !errors.As(err, &failed) {
		t.Fatalf("no initialization error, but: %v", err)
	}
	return strings.Join(failed.Reasons, "\n")
}

func at(props resource.PropertyMap, keys ...any) any {
	value, _ := resource.PropertyPath(keys).Get(resource.NewObjectProperty(props))
	return value.V
}

const aMap = `{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: NS, labels: {a: "1", b: "1"}}, data: {k: v}}`

func TestLifeOfAnObject(t *testing.T) {
	t.Parallel()
	f := setUp(t, nil)
	r, inputs := f.resource(aMap)
	if previewed := r.Preview(inputs); at(previewed, "data", "k") != "v" || f.live(configMaps, "m") != nil {
		t.Fatalf("the preview made it, or does not know it: %v", previewed)
	}
	f.must(r.Create(inputs))
	if r.ID != resource.ID(f.namespace+"/m") || at(r.Outputs, "metadata", "uid") == nil {
		t.Errorf("ID %s, outputs %v", r.ID, r.Outputs)
	}
	if diff := r.Diff(inputs); diff.Changes != plugin.DiffNone {
		t.Errorf("nothing changed, but: %v", diff.DetailedDiff)
	}

	// A field that is no longer wanted goes away, though another manager's stay.
	f.patch(context.Background(), f.namespace, configMaps, "m", "", `metadata: {labels: {other: "1"}}`)
	_, changed := f.resource(strings.ReplaceAll(aMap, `a: "1", b: "1"`, `a: "2"`))
	diff := r.Diff(changed)
	if diff.Changes != plugin.DiffSome || len(diff.ReplaceKeys) > 0 || len(diff.DetailedDiff) != 2 {
		t.Errorf("labels changed: %v", diff)
	}
	f.must(r.Update(changed))
	if labels := fmt.Sprint(f.live(configMaps, "m").GetLabels()); labels != "map[a:2 other:1]" {
		t.Error(labels)
	}

	// Data of a ConfigMap is replaced; it keeps its name, so the old one goes first.
	_, other := f.resource(strings.ReplaceAll(aMap, "k: v", "k: w"))
	if diff := r.Diff(other); fmt.Sprint(diff.ReplaceKeys) == "[]" || !diff.DeleteBeforeReplace {
		t.Errorf("data changed: %v", diff)
	}
	_, elsewhere := f.resource(strings.ReplaceAll(aMap, "name: m", "name: n2"))
	if diff := r.Diff(elsewhere); len(diff.ReplaceKeys) != 1 || diff.DeleteBeforeReplace {
		t.Errorf("name changed: %v", diff)
	}

	// A refresh finds what others have done.
	f.patch(context.Background(), f.namespace, configMaps, "m", "", `data: {k: x}`)
	if !r.Refresh() || at(r.Outputs, "data", "k") != "x" {
		t.Errorf("refreshed: %v", r.Outputs)
	}
	if diff := r.Diff(changed); len(diff.DetailedDiff) != 1 {
		t.Errorf("after a change by hand: %v", diff.DetailedDiff)
	}
	f.must(r.Delete())
	if f.live(configMaps, "m") != nil {
		t.Error("it is still there")
	}
	if r.Refresh() {
		t.Error("a refresh still finds it")
	}
	f.must(r.Delete())
}

func TestAutomaticNames(t *testing.T) {
	f := setUp(t, map[string]any{"namespace": "default"})
	r, inputs := f.resource(`{apiVersion: v1, kind: ConfigMap, data: {k: v}}`)
	checked := r.Checked(inputs)
	name, _ := at(checked, "metadata", "name").(string)
	if !strings.HasPrefix(name, "res-") || at(checked, "metadata", "namespace") != "default" {
		t.Errorf("checked: %v", checked)
	}
	f.must(r.Create(inputs))
	if again := r.Checked(inputs); at(again, "metadata", "name") != name {
		t.Errorf("another name: %v", again)
	}
	_, changed := f.resource(`{apiVersion: v1, kind: ConfigMap, data: {k: w}}`)
	if diff := r.Diff(changed); len(diff.ReplaceKeys) == 0 || diff.DeleteBeforeReplace {
		t.Errorf("a new one can get a new name: %v", diff)
	}
	f.must(r.Delete())

	class, inputs := f.resource(`{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: c}, provisioner: x/y}`)
	if checked := class.Checked(inputs); at(checked, "metadata", "namespace") != nil {
		t.Errorf("a StorageClass in a namespace: %v", checked)
	}
	patch, inputs := f.resource(`{apiVersion: v1, kind: Node, metadata: {labels: {a: b}}}`)
	patch.URN = resource.NewURN("t", "p", "", "kubernetes:core/v1:NodePatch", "n")
	if _, failures, err := patch.Check(inputs); err == nil && len(failures) == 0 {
		t.Error("a Patch resource without a name is taken")
	}
}

const workload = `{replicas: 3, selector: {matchLabels: {app: x}}, template: {metadata: {labels: {app: x}}, spec: {containers: [{name: c, image: "IMAGE"}]}}}`

func TestWorkloadsAreAwaited(t *testing.T) {
	noReplicas := strings.ReplaceAll(workload, "replicas: 3, ", "")
	for kind, text := range map[string]string{
		"StatefulSet": `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: w, namespace: NS}, spec: ` + workload + `}`,
		"Deployment":  `{apiVersion: apps/v1, kind: Deployment, metadata: {name: w, namespace: NS}, spec: ` + workload + `}`,
		"DaemonSet":   `{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: w, namespace: NS}, spec: ` + noReplicas + `}`,
		"Pod":         `{apiVersion: v1, kind: Pod, metadata: {name: w, namespace: NS}, spec: {containers: [{name: c, image: "IMAGE"}]}}`,
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, nil)
			r, good := f.resource(strings.ReplaceAll(text, "IMAGE", "good:1"))
			f.must(r.Create(good))
			if diff := r.Diff(good); diff.Changes != plugin.DiffNone {
				t.Errorf("nothing changed, but: %v", diff.DetailedDiff)
			}
			if !r.Refresh() {
				t.Error("a refresh does not find it")
			}
			if kind == "StatefulSet" {
				if at(r.Outputs, "status", "readyReplicas") != 3.0 {
					t.Errorf("status %v", at(r.Outputs, "status"))
				}
				_, four := f.resource(strings.ReplaceAll(strings.ReplaceAll(text, "IMAGE", "good:2"), "replicas: 3", "replicas: 4"))
				if diff := r.Diff(four); len(diff.ReplaceKeys) > 0 {
					t.Errorf("replaced for a new image: %v", diff)
				}
				f.must(r.Update(four))
				if at(r.Outputs, "status", "readyReplicas") != 4.0 || at(r.Outputs, "status", "updatedReplicas") == 0.0 {
					t.Errorf("status %v", at(r.Outputs, "status"))
				}
				_, named := f.resource(strings.ReplaceAll(text, "spec: {replicas", "spec: {serviceName: other, replicas"))
				if diff := r.Diff(named); len(diff.ReplaceKeys) != 1 || !diff.DeleteBeforeReplace {
					t.Errorf("a new service name: %v", diff)
				}
				if log := f.plugin.Log(); !strings.Contains(log, "/3 Pods ready") || !strings.Contains(log, "/4 Pods ready") {
					t.Errorf("no progress: %s", log)
				}
			}
			f.must(r.Delete())

			r, bad := f.resource(strings.ReplaceAll(text, "IMAGE", "bad:1"))
			why := reasons(t, f.create(r, bad, 8*time.Second))
			// The released plugin does not say what a DaemonSet's Pods are short of.
			named := strings.Contains(why, "ImagePullBackOff") && strings.Contains(why, f.namespace+"/w")
			if !named && !(released && kind == "DaemonSet") ||
				at(r.Outputs, "metadata", "uid") == nil || r.ID == "" {
				t.Errorf("ID %s, outputs %v, reasons:\n%s", r.ID, r.Outputs, why)
			}
			f.must(r.Delete())
		})
	}
}

func TestJobIsAwaited(t *testing.T) {
	t.Parallel()
	f := setUp(t, nil)
	const job = `{apiVersion: batch/v1, kind: Job, metadata: {name: j, namespace: NS}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "done:1"}]}}}}`
	r, inputs := f.resource(job)
	f.must(r.Create(inputs))
	f.must(r.Delete())
}

func TestServicesAndVolumesAreAwaited(t *testing.T) {
	t.Parallel()
	f := setUp(t, nil)
	for _, text := range []string{
		`{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: NS}, spec: {clusterIP: None, selector: {app: x}, ports: [{port: 80}]}}`,
		`{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: NS}, spec: {ports: [{port: 80}]}}`,
		`{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: NS}, provisioner: kubernetes.io/no-provisioner, volumeBindingMode: WaitForFirstConsumer}`,
		`{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c, namespace: NS}, spec: {accessModes: [ReadWriteOnce], storageClassName: NS, resources: {requests: {storage: 1Gi}}}}`,
		`{apiVersion: v1, kind: PersistentVolume, metadata: {name: NS}, spec: {accessModes: [ReadWriteOnce], storageClassName: NS, capacity: {storage: 1024Mi}, hostPath: {path: /x}}}`,
	} {
		r, inputs := f.resource(text)
		began := time.Now()
		f.must(r.Create(inputs))
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s: %s", text, took)
		}
		if diff := r.Diff(inputs); diff.Changes != plugin.DiffNone {
			t.Errorf("nothing changed, but: %v", diff.DetailedDiff)
		}
		t.Cleanup(func() { _ = r.Delete() })
	}
	r, inputs := f.resource(`{apiVersion: v1, kind: Service, metadata: {name: s, namespace: NS}, spec: {selector: {app: x}, ports: [{port: 80}]}}`)
	f.must(r.Create(inputs))
}

func TestSkipAwait(t *testing.T) {
	f := setUp(t, nil)
	r, inputs := f.resource(`{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: w, namespace: NS, annotations: {pulumi.com/skipAwait: "true"}}, spec: ` +
		strings.ReplaceAll(workload, "IMAGE", "bad:1") + `}`)
	f.must(f.create(r, inputs, 5*time.Second))
	f.must(r.Delete())
}

func TestCancelKeepsWhatWasMade(t *testing.T) {
	f := setUp(t, nil)
	r, inputs := f.resource(`{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: w, namespace: NS}, spec: ` +
		strings.ReplaceAll(workload, "IMAGE", "bad:1") + `}`)
	done := make(chan error, 1)
	go func() { done <- f.create(r, inputs, time.Minute) }()
	// The released plugin loses an object whose creation it has not heard back from.
	made := func() bool {
		return f.live(statefulSets, "w") != nil && (!released || strings.Contains(f.plugin.Log(), "Pods ready"))
	}
	for limit := time.Now().Add(30 * time.Second); !made(); {
		if time.Now().After(limit) {
			t.Fatal("it was never made")
		}
	}
	f.must(f.plugin.SignalCancellation(context.Background()))
	select {
	case err := <-done:
		if reasons(t, err); r.ID == "" || at(r.Outputs, "metadata", "uid") == nil {
			t.Errorf("ID %s, outputs %v", r.ID, r.Outputs)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it still waits")
	}
}

func TestSecretsStaySecret(t *testing.T) {
	f := setUp(t, nil)
	r, inputs := f.resource(`{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: NS}, stringData: {k: hush}}`)
	f.must(r.Create(inputs))
	for _, part := range []resource.PropertyMap{r.Inputs, r.Outputs, r.Outputs[keyInputs].ObjectValue()} {
		if !part["data"].IsSecret() {
			t.Errorf("in the open: %v", part)
		}
	}
	if diff := r.Diff(inputs); diff.Changes != plugin.DiffNone {
		t.Errorf("nothing changed, but: %v", diff.DetailedDiff)
	}
	if !r.Refresh() || !r.Outputs["data"].IsSecret() || !r.Inputs["data"].IsSecret() {
		t.Errorf("in the open after a refresh: %v %v", r.Inputs, r.Outputs)
	}
	if strings.Contains(f.plugin.Log(), "hush") {
		t.Error("it was logged")
	}
}

func TestWhatExistsIsRefusedOrTakenOver(t *testing.T) {
	f := setUp(t, nil)
	r, inputs := f.resource(aMap)
	f.must(r.Create(inputs))
	second, _ := f.resource(aMap)
	if previewed := second.Preview(inputs); at(previewed, "data", "k") != "v" {
		t.Errorf("previewed: %v", previewed)
	}
	if err := second.Create(inputs); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("made twice: %v", err)
	}

	u := setUp(t, map[string]any{"upsertExistingObjects": true})
	u.namespace = f.namespace
	third, inputs := u.resource(strings.ReplaceAll(aMap, `a: "1", b: "1"`, `c: "1"`))
	u.must(third.Create(inputs))
	if labels := fmt.Sprint(f.live(configMaps, "m").GetLabels()); labels != "map[a:1 b:1 c:1]" {
		t.Error(labels)
	}

	if released {
		return // it fails in the preview
	}
	const idle = `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: idle, namespace: NS}, spec: {replicas: 0,
		serviceName: one, selector: {matchLabels: {app: idle}},
		template: {metadata: {labels: {app: idle}}, spec: {containers: [{name: c, image: good:1}]}}}}`
	set, inputs := u.resource(idle)
	u.must(set.Create(inputs))
	successor, inputs := u.resource(strings.ReplaceAll(idle, "serviceName: one", "serviceName: two"))
	if previewed := successor.Preview(inputs); at(previewed, "spec", "serviceName") != "two" {
		t.Errorf("previewed: %v", previewed)
	}
}

func TestPatchOwnsSingleFields(t *testing.T) {
	f := setUp(t, nil)
	r, inputs := f.resource(`{apiVersion: v1, kind: Node, metadata: {name: node, labels: {NS: "1", other-NS: "1"}}}`)
	r.URN = resource.NewURN("t", "p", "", "kubernetes:core/v1:NodePatch", "n")
	f.must(r.Create(inputs))
	if f.live(nodes, "node").GetLabels()[f.namespace] != "1" {
		t.Error("the label is not there")
	}
	_, fewer := f.resource(`{apiVersion: v1, kind: Node, metadata: {name: node, labels: {NS: "2"}}}`)
	f.must(r.Update(fewer))
	if labels := f.live(nodes, "node").GetLabels(); labels[f.namespace] != "2" || labels["other-"+f.namespace] != "" {
		t.Error(labels)
	}
	f.must(r.Delete())
	if node := f.live(nodes, "node"); node == nil || node.GetLabels()[f.namespace] != "" {
		t.Errorf("after its deletion: %v", node)
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	f := setUp(t, nil)
	const plain = `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: w, namespace: NS}, spec: ` + workload + `}`
	text := strings.ReplaceAll(plain, "IMAGE", "good:1")
	r, inputs := f.resource(text)
	f.must(r.Create(inputs))
	f.patch(context.Background(), f.namespace, statefulSets, "w", "", `spec: {replicas: 1}`)

	_, two := f.resource(strings.ReplaceAll(text, "replicas: 3", "replicas: 2"))
	if why := reasons(t, r.Update(two)); !strings.Contains(why, "conflict") || !strings.Contains(why, ".spec.replicas") {
		t.Errorf("no conflict: %s", why)
	}

	// Ignored, it is left to the other manager.
	_, image := f.resource(strings.ReplaceAll(text, "good:1", "good:2"))
	checked := r.Checked(image)
	resp, err := f.plugin.Update(context.Background(), plugin.UpdateRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), ID: r.ID, OldInputs: r.Inputs, OldOutputs: r.Outputs,
		NewInputs: checked, Timeout: 60, IgnoreChanges: []string{"spec.replicas"},
	})
	f.must(err)
	if at(resp.Properties, "spec", "replicas") != 1.0 {
		t.Errorf("replicas: %v", at(resp.Properties, "spec", "replicas"))
	}

	_, forced := f.resource(strings.ReplaceAll(strings.ReplaceAll(text, "replicas: 3", "replicas: 2"),
		"namespace: NS", `namespace: NS, annotations: {pulumi.com/patchForce: "true"}`))
	f.must(r.Update(forced))
	if at(r.Outputs, "spec", "replicas") != 2.0 {
		t.Errorf("replicas: %v", at(r.Outputs, "spec", "replicas"))
	}
}

func TestDeletionIsAwaited(t *testing.T) {
	t.Parallel()
	f := setUp(t, nil)
	r, inputs := f.resource(strings.ReplaceAll(aMap, "name: m,", "name: m, finalizers: [test.example/held],"))
	f.must(r.Create(inputs))
	began := time.Now()
	_, err := f.plugin.Delete(context.Background(), plugin.DeleteRequest{
		URN: r.URN, Name: r.URN.Name(), Type: r.URN.Type(), ID: r.ID, Inputs: r.Inputs, Outputs: r.Outputs, Timeout: 3,
	})
	if err == nil || time.Since(began) > 15*time.Second {
		t.Fatalf("%v after %s", err, time.Since(began))
	}
	if said := err.Error() + f.plugin.Log(); !released && !strings.Contains(said, "test.example/held") {
		t.Error(said)
	}
	f.patch(context.Background(), f.namespace, configMaps, "m", "", `metadata: {finalizers: null}`)
	f.must(r.Delete())

	space, inputs := f.resource(`{apiVersion: v1, kind: Namespace, metadata: {name: NS-2}}`)
	f.must(space.Create(inputs))
	f.must(space.Delete())
	if f.live(namespaces, f.namespace+"-2") != nil {
		t.Error("the namespace is still there")
	}
}

func TestOrderIsForgiven(t *testing.T) {
	t.Parallel()
	f := setUp(t, nil)
	r, inputs := f.resource(strings.ReplaceAll(aMap, "NS", "NS-later"))
	done := make(chan error, 1)
	go func() { done <- r.Create(inputs) }()
	for limit := time.Now().Add(30 * time.Second); !strings.Contains(f.plugin.Log(), "not found"); {
		if time.Now().After(limit) {
			t.Fatalf("it did not try: %s", f.plugin.Log())
		}
		<-time.After(100 * time.Millisecond)
	}
	space, spaceInputs := f.resource(`{apiVersion: v1, kind: Namespace, metadata: {name: NS-later}}`)
	f.must(space.Create(spaceInputs))
	f.must(<-done)
	f.must(space.Delete())
}

func TestUnknownsArePreviewedAsTheyAre(t *testing.T) {
	f := setUp(t, nil)
	r, inputs := f.resource(aMap)
	inputs["data"] = resource.MakeComputed(resource.NewStringProperty(""))
	if previewed := r.Preview(inputs); !previewed["data"].ContainsUnknowns() {
		t.Errorf("previewed: %v", previewed)
	}
}

// A cluster that is gone refuses connections; a host that is gone does not even do that.
func TestClusterGone(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	for name, host := range map[string]string{"refuses": "127.0.0.1:" + freePort(), "silent": silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			use := func(drop bool) *plugintest.Resource {
				p := plugintest.Start(t)
				began := time.Now()
				if err := p.Use("kubernetes", plugintest.Map(map[string]any{
					"kubeconfig": strings.ReplaceAll(kubeconfigText, "SERVER:6443", host), "deleteUnreachable": drop,
				})); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > 20*time.Second && !released {
					t.Errorf("it took %s to find out", took)
				}
				return &plugintest.Resource{
					Plugin: p, ID: "ns/m", Inputs: resource.PropertyMap{},
					URN: resource.NewURN("t", "p", "", "kubernetes:core/v1:ConfigMap", "m"),
					Outputs: plugintest.Map(map[string]any{
						"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "m", "namespace": "ns"},
					}),
				}
			}
			r := use(false)
			if previewed := r.Preview(resource.NewPropertyMapFromMap(object(t, aMap).Object)); at(previewed, "data", "k") != "v" {
				t.Errorf("previewed: %v", previewed)
			}
			if err := r.Delete(); err == nil || !strings.Contains(err.Error(), "PULUMI_K8S_DELETE_UNREACHABLE") {
				t.Errorf("deleted: %v", err)
			}
			r = use(true)
			if r.Refresh() {
				t.Error("a refresh still finds it")
			}
			if err := r.Delete(); err != nil {
				t.Errorf("not dropped: %v", err)
			}
		})
	}
}

func TestReadsWhatOthersMade(t *testing.T) {
	f := setUp(t, nil)
	got, err := f.plugin.Read(context.Background(), plugin.ReadRequest{
		URN: resource.NewURN("t", "p", "", "kubernetes:core/v1:Namespace", "n"), ID: resource.ID(f.namespace),
		Name: "n", Type: "kubernetes:core/v1:Namespace",
	})
	f.must(err)
	if at(got.Outputs, "metadata", "name") != f.namespace || at(got.Inputs, "metadata", "uid") != nil ||
		at(got.Inputs, "kind") != "Namespace" {
		t.Errorf("inputs %v, outputs %v", got.Inputs, got.Outputs)
	}
}

func TestWhatIsNotServedSaysSo(t *testing.T) {
	if released {
		t.Skip("the released plugin serves it")
	}
	f := setUp(t, nil)
	r, inputs := f.resource(strings.ReplaceAll(aMap, "namespace: NS", `namespace: NS, annotations: {pulumi.com/waitFor: condition=Ready}`))
	if _, failures, err := r.Check(inputs); err != nil || len(failures) != 1 || !strings.Contains(failures[0].Reason, "released plugin") {
		t.Errorf("%v %v", failures, err)
	}
	if err := plugintest.Start(t).Use("kubernetes", plugintest.Map(map[string]any{"renderYamlToDirectory": "x"})); err == nil {
		t.Error("rendering is taken")
	}
}
