package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

const usualTimeout = 10 * time.Minute

// reporter shows what a wait is about: the state it is in, and what it finds amiss.
type reporter func(status string, warnings []string)

// notReady is an object that exists but did not become ready (or did not go away).
type notReady struct {
	object  *unstructured.Unstructured
	problem string
	reasons []string
}

func (e *notReady) Error() string { return e.problem }

// readyKind finds how an object becomes ready; its own kind's way unless it is to be skipped.
func readyKind(inputs, live *unstructured.Unstructured) (readiness, bool) {
	kind, ok := kinds[live.GetAPIVersion()+"/"+live.GetKind()]
	return kind, ok && !annotationTrue(inputs, annotationSkipAwait)
}

// awaitReady waits until an object is ready, and returns it as it then is.
func (a *api) awaitReady(
	ctx context.Context, kind readiness, live *unstructured.Unstructured, updating bool, timeout time.Duration,
	report reporter,
) (*unstructured.Unstructured, error) {
	if first := (snapshot{object: live, updating: updating}); len(kind.related) == 0 && kind.check(first).ready {
		return live, nil
	}
	if timeout == 0 {
		timeout = kind.timeout
	}
	w, err := a.watch(ctx, live, append(slices.Clone(kind.related), events), timeout)
	if err != nil {
		return live, err
	}
	defer w.stop()

	generation := live.GetGeneration()
	var last progress
	for {
		s := w.snapshot()
		s.updating = updating
		if s.object != nil && s.object.GetGeneration() >= generation {
			live = s.object
			s.bindingMode = a.bindingMode(w.ctx, s.object)
			last = kind.check(s)
			if last.ready {
				return live, nil
			}
			report(last.status, append(slices.Clone(last.warnings), eventsOf(s, live)...))
			if last.failed {
				return live, &notReady{live, fmt.Sprintf("%s %s failed", live.GetKind(), objectID(live)), last.warnings}
			}
		}
		if err := w.next(); err != nil {
			if kind.enough != nil && kind.enough(s) {
				return live, nil
			}
			why := []string{}
			if last.status != "" {
				why = append(why, last.status)
			}
			why = append(why, last.warnings...)
			why = append(why, eventsOf(s, append([]*unstructured.Unstructured{live}, last.pods...)...)...)
			problem := fmt.Sprintf("%s %s did not become ready: %v", live.GetKind(), objectID(live), err)
			return live, &notReady{live, problem, why}
		}
	}
}

// checkReady looks once whether an object is ready.
func (a *api) checkReady(ctx context.Context, kind readiness, live *unstructured.Unstructured) error {
	if kind.once {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s := snapshot{object: live, updating: true, quiet: time.Hour}
	s.related = map[schema.GroupVersionResource][]*unstructured.Unstructured{}
	for _, resource := range kind.related {
		list, err := a.client.Resource(resource).Namespace(live.GetNamespace()).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			s.related[resource] = append(s.related[resource], &list.Items[i])
		}
	}
	if p := kind.check(s); !p.ready {
		return &notReady{
			live, fmt.Sprintf("%s %s exists but is not ready", live.GetKind(), objectID(live)),
			append([]string{p.status}, p.warnings...),
		}
	}
	return nil
}

// awaitGone waits until an object is no more.
func (a *api) awaitGone(
	ctx context.Context, live *unstructured.Unstructured, timeout time.Duration, report reporter,
) error {
	w, err := a.watch(ctx, live, nil, timeout)
	if err != nil {
		return err
	}
	defer w.stop()
	for {
		s := w.snapshot()
		if s.object == nil || live.GetUID() != "" && s.object.GetUID() != live.GetUID() {
			// Not to be taken for gone because the cluster could not be asked.
			if now, err := a.read(w.ctx, live); isGone(err) || err == nil && now.GetUID() != live.GetUID() {
				return nil
			}
		} else {
			live = s.object
			report(fmt.Sprintf("Waiting for the %s to be deleted", live.GetKind()), nil)
		}
		if err := w.next(); err != nil {
			// The engine shows no more of a failed deletion than this one message.
			problem := fmt.Sprintf("%s %s is still there: %v", live.GetKind(), objectID(live), err)
			if finalizers := live.GetFinalizers(); len(finalizers) > 0 {
				problem += fmt.Sprintf("; these finalizers may hold it: %s", strings.Join(finalizers, ", "))
			}
			for _, message := range conditionsMessages(live) {
				problem += "; " + message
			}
			return &notReady{live, problem, nil}
		}
	}
}

// conditionsMessages says what an object's status has to say, such as what a namespace still holds.
func conditionsMessages(object *unstructured.Unstructured) []string {
	var messages []string
	for _, c := range conditions(object) {
		if c.Status == metav1.ConditionTrue && c.Message != "" {
			messages = append(messages, fmt.Sprintf("[%s] %s", c.Reason, c.Message))
		}
	}
	return messages
}

// bindingMode is when the claim's storage class binds it, "" for other objects and where that is unknown.
func (a *api) bindingMode(ctx context.Context, claim *unstructured.Unstructured) string {
	name := text(field(claim.Object, "spec", "storageClassName"))
	if !isKind(claim, "", "PersistentVolumeClaim") || name == "" {
		return ""
	}
	class, err := get(ctx, a.client.Resource(schema.GroupVersionResource{
		Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses",
	}), name)
	if err != nil {
		return ""
	}
	return text(class.Object["volumeBindingMode"])
}

// eventsOf lists the warnings that the cluster has about objects, the last few of each.
func eventsOf(s snapshot, about ...*unstructured.Unstructured) []string {
	const each = 3
	var messages []string
	for _, object := range about {
		if waiting, _ := podTrouble(object); object.GetKind() == "Pod" && waiting == "" {
			continue
		}
		var found []string
		sorted := slices.Clone(s.related[events])
		slices.SortStableFunc(sorted, func(a, b *unstructured.Unstructured) int {
			return eventTime(a).Compare(eventTime(b))
		})
		for _, event := range sorted {
			if text(field(event.Object, "involvedObject", "uid")) != string(object.GetUID()) || event.Object["type"] != "Warning" {
				continue
			}
			found = append(found, fmt.Sprintf("event on %s %s: %s: %s", object.GetKind(), objectID(object),
				text(event.Object["reason"]), text(event.Object["message"])))
		}
		messages = append(messages, slices.Compact(found[max(0, len(found)-each):])...)
	}
	return messages
}

func eventTime(event *unstructured.Unstructured) time.Time {
	for _, key := range []string{"lastTimestamp", "eventTime"} {
		if at, err := time.Parse(time.RFC3339, text(event.Object[key])); err == nil {
			return at
		}
	}
	return event.GetCreationTimestamp().Time
}

// watcher follows an object and what is related to it.
type watcher struct {
	ctx     context.Context
	stop    context.CancelFunc
	cancel  context.Context // of the whole plugin
	timeout time.Duration

	object   cache.SharedIndexInformer
	key      string
	related  map[schema.GroupVersionResource]cache.SharedIndexInformer
	events   chan struct{} // something changed
	moved    chan struct{} // something related changed
	lastMove time.Time
}

func (a *api) watch(
	ctx context.Context, object *unstructured.Unstructured, related []schema.GroupVersionResource, timeout time.Duration,
) (*watcher, error) {
	_, mapping, err := a.resourceFor(object)
	if err != nil {
		return nil, err
	}
	if timeout == 0 {
		timeout = usualTimeout
	}
	w := &watcher{
		cancel: ctx, timeout: timeout, key: object.GetName(),
		related: map[schema.GroupVersionResource]cache.SharedIndexInformer{},
		events:  make(chan struct{}, 1), moved: make(chan struct{}, 1), lastMove: time.Now(),
	}
	w.ctx, w.stop = context.WithTimeout(ctx, timeout)

	namespace := metav1.NamespaceAll
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		namespace = orDefault(object.GetNamespace())
		w.key = namespace + "/" + object.GetName()
	}
	start := func(resource schema.GroupVersionResource, selector string, changed ...chan struct{}) cache.SharedIndexInformer {
		informer := dynamicinformer.NewFilteredDynamicInformer(a.client, resource, namespace, 0, cache.Indexers{},
			func(options *metav1.ListOptions) { options.FieldSelector = selector }).Informer()
		notify := func() {
			for _, channel := range changed {
				select {
				case channel <- struct{}{}:
				default: // The wait is about to look anyway.
				}
			}
		}
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { notify() },
			UpdateFunc: func(any, any) { notify() },
			DeleteFunc: func(any) { notify() },
		})
		go informer.Run(w.ctx.Done())
		return informer
	}
	w.object = start(mapping.Resource, "metadata.name="+object.GetName(), w.events)
	for _, resource := range related {
		switch resource {
		case events:
			if namespace != metav1.NamespaceAll {
				w.related[resource] = start(resource, "type=Warning", w.events)
			}
		case endpoints:
			w.related[resource] = start(resource, "metadata.name="+object.GetName(), w.events, w.moved)
		default:
			w.related[resource] = start(resource, "", w.events)
		}
	}
	// The object has just been there: nothing can be said until all of it has been seen once.
	synced := []cache.InformerSynced{w.object.HasSynced}
	for resource, informer := range w.related {
		if resource != events {
			synced = append(synced, informer.HasSynced)
		}
	}
	cache.WaitForCacheSync(w.ctx.Done(), synced...)
	return w, nil
}

// snapshot is what is known now.
func (w *watcher) snapshot() snapshot {
	s := snapshot{related: map[schema.GroupVersionResource][]*unstructured.Unstructured{}}
	if object, ok, _ := w.object.GetStore().GetByKey(w.key); ok {
		s.object = object.(*unstructured.Unstructured)
	}
	for resource, informer := range w.related {
		for _, object := range informer.GetStore().List() {
			s.related[resource] = append(s.related[resource], object.(*unstructured.Unstructured))
		}
	}
	select {
	case <-w.moved:
		w.lastMove = time.Now()
	default:
	}
	s.quiet = time.Since(w.lastMove)
	return s
}

// next blocks until there may be something new; it fails if the wait is over.
func (w *watcher) next() error {
	select {
	case <-w.events:
	case <-time.After(time.Second): // for what depends on time
	case <-w.ctx.Done():
	}
	switch {
	case w.cancel.Err() != nil:
		return errors.New("the operation was cancelled")
	case w.ctx.Err() != nil:
		return fmt.Errorf("timed out after %s", w.timeout)
	}
	return nil
}
