package main

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

const notReadyPod = `
apiVersion: v1
kind: Pod
metadata: {name: p-0, namespace: ns, uid: p0, ownerReferences: [{uid: owner}]}
status:
  conditions:
  - {type: PodScheduled, status: "True"}
  - {type: Initialized, status: "True"}
  - {type: Ready, status: "False", reason: ContainersNotReady, message: "containers with unready status: [c]"}
  containerStatuses:
  - name: c
    ready: false
    state: {waiting: {reason: CrashLoopBackOff, message: back-off 10s}}
    lastState: {terminated: {reason: Error, exitCode: 3, finishedAt: "2026-01-01T00:00:00Z"}}
`

// live reads an object from YAML, with numbers as the API server has them.
func live(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	var live unstructured.Unstructured
	encoded, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = live.UnmarshalJSON(encoded)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &live
}

func TestReadiness(t *testing.T) {
	deployment := func(generation, status string) string {
		return `{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, uid: owner, generation: ` + generation +
			`, annotations: {deployment.kubernetes.io/revision: "2"}}, spec: {replicas: 2, template: {spec: {volumes: [{persistentVolumeClaim: {claimName: v}}]}}}, status: {` + status + `}}`
	}
	const rolledOut = `observedGeneration: 2, updatedReplicas: 2, conditions: [{type: Available, status: "True"}, {type: Progressing, status: "True", reason: NewReplicaSetAvailable}]`
	set := func(ready string) string {
		return `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: rs, uid: rs, annotations: {deployment.kubernetes.io/revision: "2"}, ownerReferences: [{uid: owner}]}, spec: {replicas: 2}, status: {readyReplicas: ` + ready + `}}`
	}
	stateful := func(spec, status string) string {
		return `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: s, namespace: ns, uid: owner, generation: 2}, spec: {replicas: 3, ` +
			spec + `}, status: {observedGeneration: 2, ` + status + `}}`
	}
	claim := func(phase string) string {
		return `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: v}, status: {phase: ` + phase + `}}`
	}
	service := func(spec string) string {
		return `{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {` + spec + `}}`
	}
	const unready = `{apiVersion: v1, kind: Endpoints, metadata: {name: s}, subsets: [{notReadyAddresses: [{ip: 10.0.0.1}]}]}`
	const ready = `{apiVersion: v1, kind: Endpoints, metadata: {name: s}, subsets: [{addresses: [{ip: 10.0.0.1}]}]}`
	byKind := map[string]schema.GroupVersionResource{
		"Pod": pods, "ReplicaSet": replicaSets, "PersistentVolumeClaim": claims, "Endpoints": endpoints,
	}

	for name, test := range map[string]struct {
		object    string
		related   []string
		snapshot  snapshot
		want      string // ready, failed, waiting
		status    string
		warnings  string
		noWarning bool
	}{
		"deployment": {
			object: deployment("2", rolledOut), related: []string{set("2"), claim("Bound")}, want: "ready", noWarning: true,
		},
		"deployment not looked at by its controller": {
			object: deployment("3", rolledOut), related: []string{set("2")}, want: "waiting",
		},
		"deployment with a Pod missing": {
			object: deployment("2", rolledOut), related: []string{set("1")}, want: "waiting", status: "1/2 Pods ready",
		},
		"deployment without its volume": {
			object: deployment("2", rolledOut), related: []string{set("2"), claim("Pending")}, want: "waiting",
			warnings: "PersistentVolumeClaim v is Pending",
		},
		"deployment that cannot go on": {
			object:  deployment("2", `observedGeneration: 2, conditions: [{type: Progressing, status: "False", reason: ProgressDeadlineExceeded, message: too late}]`),
			related: []string{set("0"), strings.ReplaceAll(notReadyPod, "uid: owner", "uid: rs")}, want: "waiting",
			warnings: "[ProgressDeadlineExceeded] too late\n[Pod ns/p-0]: containers with unready status: [c]; " +
				"container c: [CrashLoopBackOff] back-off 10s; container c: [Error] exit code 3 at 2026-01-01T00:00:00Z",
		},
		"statefulset": {
			object: stateful("", `replicas: 3, readyReplicas: 3, currentReplicas: 3, currentRevision: a, updateRevision: a`), want: "ready",
		},
		"statefulset half way": {
			object:  stateful("", `replicas: 3, readyReplicas: 1, currentReplicas: 3, currentRevision: a, updateRevision: a`),
			related: []string{notReadyPod}, want: "waiting", status: "1/3 Pods ready", warnings: "CrashLoopBackOff",
		},
		"statefulset of the revision before": {
			object: stateful("", `replicas: 3, readyReplicas: 2, updatedReplicas: 1, currentReplicas: 2, currentRevision: a, updateRevision: b`),
			want:   "waiting", status: "1/3 Pods ready",
		},
		"statefulset with the old status": {
			object: strings.ReplaceAll(stateful("", `replicas: 3, readyReplicas: 3, currentReplicas: 3, currentRevision: a, updateRevision: a`),
				"observedGeneration: 2", "observedGeneration: 1"), want: "waiting",
		},
		"statefulset that the user rolls out": {
			object: stateful("updateStrategy: {type: OnDelete}", `replicas: 3, readyReplicas: 3, currentRevision: a, updateRevision: b`), want: "ready",
		},
		"statefulset of nothing": {
			object: strings.ReplaceAll(stateful("", `replicas: 0, currentRevision: a, updateRevision: a`), "replicas: 3", "replicas: 0"), want: "ready",
		},
		"daemonset": {
			object: `{apiVersion: apps/v1, kind: DaemonSet, metadata: {generation: 1}, status: {observedGeneration: 1, desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 2, numberReady: 2, numberAvailable: 2}}`,
			want:   "ready",
		},
		"daemonset half way": {
			object: `{apiVersion: apps/v1, kind: DaemonSet, metadata: {generation: 1}, status: {observedGeneration: 1, desiredNumberScheduled: 2, currentNumberScheduled: 2, updatedNumberScheduled: 1, numberReady: 2, numberAvailable: 2}}`,
			want:   "waiting", status: "1/2 Pods ready",
		},
		"job done":    {object: `{apiVersion: batch/v1, kind: Job, status: {conditions: [{type: Complete, status: "True"}]}}`, want: "ready"},
		"job failed":  {object: `{apiVersion: batch/v1, kind: Job, status: {conditions: [{type: Failed, status: "True", reason: BackoffLimitExceeded, message: gave up}]}}`, want: "failed", warnings: "[BackoffLimitExceeded] gave up"},
		"pod":         {object: strings.ReplaceAll(notReadyPod, `"False"`, `"True"`), want: "ready"},
		"pod done":    {object: strings.ReplaceAll(notReadyPod, "status:\n", "status:\n  phase: Succeeded\n"), want: "ready"},
		"pod waiting": {object: notReadyPod, want: "waiting", status: "Waiting for Pod ns/p-0 to be ready", warnings: "CrashLoopBackOff"},
		"pod without a node": {
			object: `{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: 0/1 nodes}]}}`,
			want:   "waiting", status: "Waiting for Pod p to be scheduled", warnings: "0/1 nodes",
		},
		"service":              {object: service(`selector: {a: b}`), related: []string{ready}, snapshot: snapshot{quiet: time.Minute}, want: "ready"},
		"service of no pod":    {object: service(`selector: {a: b}`), related: []string{`{apiVersion: v1, kind: Endpoints, metadata: {name: s}}`}, snapshot: snapshot{quiet: time.Minute}, want: "ready"},
		"service on the move":  {object: service(`selector: {a: b}`), related: []string{ready}, snapshot: snapshot{quiet: time.Second}, want: "waiting"},
		"service of bad pods":  {object: service(`selector: {a: b}`), related: []string{unready}, snapshot: snapshot{quiet: time.Minute}, want: "waiting", warnings: "spec.selector"},
		"service, headless":    {object: service(`clusterIP: None, selector: {a: b}`), want: "ready"},
		"service, no selector": {object: service(`clusterIP: 10.0.0.1`), want: "ready"},
		"service, balanced":    {object: service(`type: LoadBalancer`), want: "waiting", warnings: "load balancer"},
		"volume":               {object: `{apiVersion: v1, kind: PersistentVolume, status: {phase: Available}}`, want: "ready"},
		"volume, new":          {object: `{apiVersion: v1, kind: PersistentVolume, status: {phase: Pending}}`, want: "waiting"},
		"claim":                {object: claim("Bound"), want: "ready"},
		"claim, new":           {object: claim("Pending"), want: "waiting"},
		"claim of a later day": {object: claim("Pending"), snapshot: snapshot{bindingMode: "WaitForFirstConsumer"}, want: "ready"},
		"secret":               {object: `{apiVersion: v1, kind: Secret, type: Opaque}`, want: "ready"},
		"token":                {object: `{apiVersion: v1, kind: Secret, type: kubernetes.io/service-account-token}`, want: "waiting"},
	} {
		s := test.snapshot
		s.object = live(t, test.object)
		s.related = map[schema.GroupVersionResource][]*unstructured.Unstructured{}
		for _, text := range test.related {
			one := live(t, text)
			s.related[byKind[one.GetKind()]] = append(s.related[byKind[one.GetKind()]], one)
		}
		p := kinds[s.object.GetAPIVersion()+"/"+s.object.GetKind()].check(s)
		got := "waiting"
		if p.failed {
			got = "failed"
		} else if p.ready {
			got = "ready"
		}
		warnings := strings.Join(p.warnings, "\n")
		if got != test.want || !strings.Contains(p.status, test.status) || !strings.Contains(warnings, test.warnings) ||
			test.noWarning && warnings != "" {
			t.Errorf("%s: %s, %q, %q", name, got, p.status, warnings)
		}
	}
}

func TestEventsOfWhatIsNotReady(t *testing.T) {
	event := func(name, uid, kind, at string) *unstructured.Unstructured {
		return live(t, `{kind: Event, metadata: {name: e}, involvedObject: {uid: `+uid+`}, type: `+kind+`, reason: `+name+`, message: m, lastTimestamp: "2026-01-01T00:00:0`+at+`Z"}`)
	}
	s := snapshot{related: map[schema.GroupVersionResource][]*unstructured.Unstructured{events: {
		event("Late", "p0", "Warning", "4"), event("Other", "p1", "Warning", "1"), event("Fine", "p0", "Normal", "1"),
		event("Lost", "p0", "Warning", "1"), event("Early", "p0", "Warning", "2"), event("Mid", "p0", "Warning", "3"),
	}}}
	got := strings.Join(eventsOf(s, live(t, notReadyPod)), "\n")
	want := "event on Pod ns/p-0: Early: m\nevent on Pod ns/p-0: Mid: m\nevent on Pod ns/p-0: Late: m"
	if got != want {
		t.Errorf("%s", got)
	}
	if got := eventsOf(s, live(t, strings.ReplaceAll(notReadyPod, `"False"`, `"True"`))); got != nil {
		t.Errorf("events of a Pod that is ready: %v", got)
	}
}
