package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What says how ready an object is, besides the object itself.
var (
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	events      = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	endpoints   = schema.GroupVersionResource{Version: "v1", Resource: "endpoints"}
	claims      = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	replicaSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
)

// snapshot is what is known of an object at one moment.
type snapshot struct {
	object  *unstructured.Unstructured
	related map[schema.GroupVersionResource][]*unstructured.Unstructured

	bindingMode string        // of a claim's storage class
	updating    bool          // the object existed before this operation
	quiet       time.Duration // since what is related last changed
}

// progress is what a snapshot amounts to.
type progress struct {
	ready    bool
	failed   bool     // it will never become ready
	status   string   // one line on how far it is
	warnings []string // what is in its way
	pods     []*unstructured.Unstructured
}

// owns notes the Pods that an object's readiness depends on, and what is amiss with them.
func (p *progress) owns(pods []*unstructured.Unstructured) {
	p.pods = pods
	var troubles []string
	for _, pod := range pods {
		if _, trouble := podTrouble(pod); trouble != "" {
			troubles = append(troubles, trouble)
		}
	}
	slices.Sort(troubles)
	p.warnings = append(p.warnings, troubles...)
}

// readiness is how a kind becomes ready.
type readiness struct {
	check   func(snapshot) progress
	related []schema.GroupVersionResource
	timeout time.Duration // where no customTimeouts are set; 0: the usual 10 minutes
	// enough says whether the object is as good as ready if time runs out.
	enough func(snapshot) bool
	// once: looked at when created or updated, not when refreshed.
	once bool
}

// All kinds that are not ready by merely existing.
var kinds = map[string]readiness{
	"apps/v1/Deployment":       {check: deploymentReady, related: []schema.GroupVersionResource{replicaSets, pods, claims}},
	"apps/v1/StatefulSet":      {check: statefulSetReady, related: []schema.GroupVersionResource{pods}},
	"apps/v1/DaemonSet":        {check: daemonSetReady, related: []schema.GroupVersionResource{pods}},
	"batch/v1/Job":             {check: jobReady, related: []schema.GroupVersionResource{pods}},
	"v1/Pod":                   {check: podReady},
	"v1/Service":               {check: serviceReady, related: []schema.GroupVersionResource{endpoints}, enough: serviceUsable},
	"v1/PersistentVolume":      {check: volumeReady, timeout: 5 * time.Minute, once: true},
	"v1/PersistentVolumeClaim": {check: claimReady, timeout: 5 * time.Minute, once: true},
	"v1/Secret":                {check: secretReady, timeout: 5 * time.Second, once: true},
}

func deploymentReady(s snapshot) progress {
	const revisionAnnotation = "deployment.kubernetes.io/revision"
	d := s.object
	p := progress{status: "Waiting for the Deployment controller"}
	revision := annotation(d, revisionAnnotation)
	if !observed(d) || revision == "" {
		return p
	}
	var set *unstructured.Unstructured
	for _, candidate := range ownedBy(s.related[replicaSets], d) {
		if annotation(candidate, revisionAnnotation) == revision {
			set = candidate
		}
	}
	if set == nil {
		return p
	}

	want, have := replicas(set), number(field(set.Object, "status", "readyReplicas"))
	p.status = fmt.Sprintf("%d/%d Pods ready", have, want)
	available, rolledOut := false, revision == "1"
	for _, c := range conditions(d) {
		isTrue := c.Status == metav1.ConditionTrue
		switch c.Type {
		case "Available":
			available = isTrue
		case "Progressing":
			rolledOut = rolledOut || isTrue && c.Reason == "NewReplicaSetAvailable"
		default:
			continue
		}
		if !isTrue {
			p.warnings = append(p.warnings, fmt.Sprintf("[%s] %s", c.Reason, c.Message))
		}
	}
	p.owns(ownedBy(s.related[pods], set))

	bound := true
	volumes, _ := field(d.Object, "spec", "template", "spec", "volumes").([]any)
	for _, volume := range volumes {
		name := text(field(volume, "persistentVolumeClaim", "claimName"))
		for _, claim := range s.related[claims] {
			if phase := text(field(claim.Object, "status", "phase")); claim.GetName() == name && phase != "Bound" {
				bound = false
				p.warnings = append(p.warnings, fmt.Sprintf("PersistentVolumeClaim %s is %s, not Bound", name, phase))
			}
		}
	}
	p.ready = available && rolledOut && bound && have >= want &&
		number(field(d.Object, "status", "updatedReplicas")) >= replicas(d)
	return p
}

func statefulSetReady(s snapshot) progress {
	set := s.object
	p := progress{status: "Waiting for the StatefulSet controller"}
	status, _ := set.Object["status"].(map[string]any)
	if !observed(set) || status == nil {
		return p
	}
	want, ready := replicas(set), number(status["readyReplicas"])
	all := number(status["replicas"]) == want && ready == want
	current, next := text(status["currentRevision"]), text(status["updateRevision"])
	onDelete := field(set.Object, "spec", "updateStrategy", "type") == "OnDelete"
	if onDelete && set.GetGeneration() > 1 {
		p.ready = all // The user replaces the pods.
	} else {
		if current != next {
			ready = min(ready, number(status["updatedReplicas"])) // Pods of the revision before don't count.
		}
		p.ready = all && current != "" && current == next && number(status["currentReplicas"]) == want
	}
	p.status = fmt.Sprintf("%d/%d Pods ready", ready, want)
	if all && !p.ready {
		p.status = fmt.Sprintf("Waiting for revision %s to become current, now %s", next, current)
	}
	p.owns(ownedBy(s.related[pods], set))
	return p
}

func daemonSetReady(s snapshot) progress {
	set := s.object
	p := progress{status: "Waiting for the DaemonSet controller"}
	status, _ := set.Object["status"].(map[string]any)
	if !observed(set) || status == nil {
		return p
	}
	want := number(status["desiredNumberScheduled"])
	done := min(number(status["numberReady"]), number(status["numberAvailable"]),
		number(status["updatedNumberScheduled"]), number(status["currentNumberScheduled"]))
	p.ready = done >= want
	p.status = fmt.Sprintf("%d/%d Pods ready", done, want)
	p.owns(ownedBy(s.related[pods], set))
	return p
}

func jobReady(s snapshot) progress {
	job := s.object
	p := progress{status: fmt.Sprintf("Waiting for the Job to complete (%d active, %d succeeded, %d failed)",
		number(field(job.Object, "status", "active")), number(field(job.Object, "status", "succeeded")),
		number(field(job.Object, "status", "failed")))}
	p.owns(ownedBy(s.related[pods], job))
	for _, c := range conditions(job) {
		if c.Status != metav1.ConditionTrue {
			continue
		}
		switch c.Type {
		case "Complete":
			p.ready = true
		case "Failed":
			p.failed = true
			p.warnings = append([]string{fmt.Sprintf("[%s] %s", c.Reason, c.Message)}, p.warnings...)
		}
	}
	return p
}

func podReady(s snapshot) progress {
	waiting, trouble := podTrouble(s.object)
	p := progress{ready: waiting == "", status: waiting}
	if trouble != "" {
		p.warnings = []string{trouble}
	}
	return p
}

// A Service is ready once its endpoints have come to rest with none that is not ready; there need not be any.
func serviceReady(s snapshot) progress {
	if !usable(s.object) {
		return progress{status: "Waiting for an address from the load balancer", warnings: []string{
			"no load balancer gave the Service an address: does the cluster have one?"}}
	}
	spec, _ := s.object.Object["spec"].(map[string]any)
	selectors, _ := spec["selector"].(map[string]any)
	if spec["type"] == "ExternalName" || spec["clusterIP"] == "None" || len(selectors) == 0 {
		return progress{ready: true}
	}
	p := progress{status: "Waiting for the Service's endpoints to settle"}
	exist, ready, pending := serviceEndpoints(s)
	if !ready {
		p.warnings = []string{"the Service has no Pod to send to: is a Pod ready, and does spec.selector match its labels?"}
	}
	p.ready = exist && !pending && s.quiet >= 10*time.Second
	return p
}

func serviceUsable(s snapshot) bool {
	_, _, pending := serviceEndpoints(s)
	return usable(s.object) && !pending
}

func usable(service *unstructured.Unstructured) bool {
	ingress, _ := field(service.Object, "status", "loadBalancer", "ingress").([]any)
	return field(service.Object, "spec", "type") != "LoadBalancer" || len(ingress) > 0
}

func serviceEndpoints(s snapshot) (exist, ready, pending bool) {
	for _, e := range s.related[endpoints] {
		if e.GetName() != s.object.GetName() {
			continue
		}
		exist = true
		subsets, _ := e.Object["subsets"].([]any)
		for _, subset := range subsets {
			addresses, _ := field(subset, "addresses").([]any)
			notReady, _ := field(subset, "notReadyAddresses").([]any)
			ready, pending = ready || len(addresses) > 0, pending || len(notReady) > 0
		}
	}
	return exist, ready, pending
}

func volumeReady(s snapshot) progress {
	phase := text(field(s.object.Object, "status", "phase"))
	return progress{ready: phase == "Available" || phase == "Bound", status: "Waiting for the volume: " + phase}
}

func claimReady(s snapshot) progress {
	phase := text(field(s.object.Object, "status", "phase"))
	p := progress{ready: phase == "Bound", status: "Waiting for the claim to be bound: " + phase}
	if s.bindingMode == "WaitForFirstConsumer" && !(s.updating && phase == "Bound") {
		p.ready = phase == "Pending" || phase == "Bound"
	}
	return p
}

// Only a service account's token is filled in by the cluster.
func secretReady(s snapshot) progress {
	data, _ := s.object.Object["data"].(map[string]any)
	return progress{
		ready:  s.object.Object["type"] != "kubernetes.io/service-account-token" || len(data) > 0,
		status: "Waiting for the service account's token",
	}
}

// observed says whether the kind's controller has seen the object as it is now, so that its status counts.
func observed(object *unstructured.Unstructured) bool {
	return number(field(object.Object, "status", "observedGeneration")) >= max(object.GetGeneration(), 1)
}

// replicas is how many Pods are wanted; 1 unless said otherwise.
func replicas(object *unstructured.Unstructured) int64 {
	if wanted := field(object.Object, "spec", "replicas"); wanted != nil {
		return number(wanted)
	}
	return 1
}

func conditions(object *unstructured.Unstructured) []metav1.Condition {
	var found []metav1.Condition
	items, _ := field(object.Object, "status", "conditions").([]any)
	for _, c := range items {
		found = append(found, metav1.Condition{
			Type: text(field(c, "type")), Status: metav1.ConditionStatus(text(field(c, "status"))),
			Reason: text(field(c, "reason")), Message: text(field(c, "message")),
		})
	}
	return found
}

func ownedBy(objects []*unstructured.Unstructured, owner *unstructured.Unstructured) []*unstructured.Unstructured {
	var owned []*unstructured.Unstructured
	for _, object := range objects {
		for _, reference := range object.GetOwnerReferences() {
			if reference.UID == owner.GetUID() {
				owned = append(owned, object)
			}
		}
	}
	return owned
}

// podTrouble says what a Pod waits for, "" if it is ready, and why, if there is something amiss.
func podTrouble(object *unstructured.Unstructured) (waiting, trouble string) {
	var pod corev1.Pod
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &pod); err != nil {
		return "Waiting for the Pod", err.Error()
	}
	found := map[corev1.PodConditionType]corev1.PodCondition{}
	for _, c := range pod.Status.Conditions {
		found[c.Type] = c
	}
	for _, step := range []struct {
		condition corev1.PodConditionType
		status    string
	}{
		{corev1.PodScheduled, "scheduled"}, {corev1.PodInitialized, "initialized"}, {corev1.PodReady, "ready"},
	} {
		c := found[step.condition]
		if c.Status == corev1.ConditionTrue || step.condition == corev1.PodReady && pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		waiting = fmt.Sprintf("Waiting for Pod %s to be %s", objectID(object), step.status)
		reasons := containerTroubles(append(slices.Clone(pod.Status.InitContainerStatuses), pod.Status.ContainerStatuses...))
		if c.Message != "" {
			reasons = append([]string{c.Message}, reasons...)
		}
		if len(reasons) > 0 {
			trouble = fmt.Sprintf("[Pod %s]: %s", objectID(object), strings.Join(reasons, "; "))
		}
		return waiting, trouble
	}
	return "", ""
}

// containerTroubles lists, for containers that are not ready, the reasons and messages that kubelet gives.
func containerTroubles(statuses []corev1.ContainerStatus) []string {
	var troubles []string
	for _, status := range statuses {
		say := func(reason, message string) {
			troubles = append(troubles, strings.TrimSpace(
				fmt.Sprintf("container %s: [%s] %s", status.Name, reason, message)))
		}
		ended := func(t *corev1.ContainerStateTerminated) {
			say(t.Reason, strings.TrimSpace(fmt.Sprintf("exit code %d at %s %s",
				t.ExitCode, t.FinishedAt.UTC().Format(time.RFC3339), t.Message)))
		}
		if status.Ready {
			continue
		}
		switch state := status.State; {
		case state.Waiting != nil && state.Waiting.Reason != "ContainerCreating" &&
			state.Waiting.Reason != "PodInitializing":
			say(state.Waiting.Reason, state.Waiting.Message)
		case state.Terminated != nil && state.Terminated.ExitCode != 0:
			ended(state.Terminated)
		}
		if last := status.LastTerminationState.Terminated; last != nil {
			ended(last)
		}
	}
	return troubles
}
