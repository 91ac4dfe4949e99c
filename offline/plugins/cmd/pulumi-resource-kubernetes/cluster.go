package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/csaupgrade"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"
)

const (
	// A host that is gone does not refuse connections, it is silent: how long to ask it before giving it up.
	reachTimeout = 10 * time.Second
	// The API server's own limit for a request is a minute.
	requestTimeout = 90 * time.Second
)

// What a plain create is signed with, as by the released plugin; the first apply takes it over.
const createManager = "pulumi-kubernetes"

// What the names of managers begin with whose client-side changes (kubectl patch, …) an apply takes over.
var clientSideManagers = []string{createManager, "pulumi-resource-kubernetes", "kubectl", "before-first-apply"}

// api is the way to one cluster.
type api struct {
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// connect makes the way to a cluster and tries it.
func connect(ctx context.Context, cfg *rest.Config) (*api, error) {
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	if err := disco.RESTClient().Get().AbsPath("/version").Do(ctx).Error(); err != nil {
		return nil, err
	}
	return &api{client, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(disco))}, nil
}

// resourceFor is the client for objects of a kind.
func (a *api) resourceFor(object *unstructured.Unstructured) (dynamic.ResourceInterface, *meta.RESTMapping, error) {
	mapping, err := a.mapping(object.GroupVersionKind())
	if meta.IsNoMatchError(err) {
		// The kind may be newer than what is cached, from a CustomResourceDefinition of this very program.
		a.mapper.Reset()
		mapping, err = a.mapping(object.GroupVersionKind())
	}
	if err != nil {
		return nil, nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return a.client.Resource(mapping.Resource), mapping, nil
	}
	return a.client.Resource(mapping.Resource).Namespace(orDefault(object.GetNamespace())), mapping, nil
}

func (a *api) mapping(gvk schema.GroupVersionKind) (*meta.RESTMapping, error) {
	return a.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
}

// knows says whether the cluster has a kind.
func (a *api) knows(object *unstructured.Unstructured) bool {
	_, _, err := a.resourceFor(object)
	return err == nil
}

func orDefault(namespace string) string {
	if namespace == "" {
		return metav1.NamespaceDefault
	}
	return namespace
}

// Kubernetes' own kinds that have no namespace. They must be known without a cluster too, for previews.
var clusterScoped = sets.New(
	"APIService", "CSIDriver", "CSINode", "CertificateSigningRequest", "ClusterRole", "ClusterRoleBinding",
	"ClusterTrustBundle", "ComponentStatus", "CustomResourceDefinition", "DeviceClass", "DeviceTaintRule", "FlowSchema",
	"IPAddress", "IngressClass", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding",
	"MutatingWebhookConfiguration", "Namespace", "Node", "PersistentVolume", "PriorityClass",
	"PriorityLevelConfiguration", "ResourceSlice", "RuntimeClass", "SelfSubjectAccessReview", "SelfSubjectReview",
	"SelfSubjectRulesReview", "ServiceCIDR", "StorageClass", "StorageVersion", "StorageVersionMigration",
	"SubjectAccessReview", "TokenReview", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
	"ValidatingWebhookConfiguration", "VolumeAttachment", "VolumeAttributesClass",
)

// namespaced says whether a kind's objects live in namespaces; a kind that nobody knows yet probably does.
func (a *api) namespaced(gvk schema.GroupVersionKind) bool {
	switch gvk.Group {
	case "apiextensions.k8s.io", "apiregistration.k8s.io":
		return false
	}
	if scheme.Scheme.IsVersionRegistered(gvk.GroupVersion()) {
		return !clusterScoped.Has(gvk.Kind)
	}
	if a != nil {
		if mapping, err := a.mapping(gvk); err == nil {
			return mapping.Scope.Name() == meta.RESTScopeNameNamespace
		}
	}
	return true
}

// change is one write to the cluster.
type change struct {
	urn           resource.URN
	inputs        *unstructured.Unstructured
	fieldManager  string
	preview       bool
	force         bool // take fields over from other managers
	ignoreChanges []string
}

func (c change) dryRun() []string {
	if c.preview {
		return []string{metav1.DryRunAll}
	}
	return nil
}

// create makes an object. With upsert an object that exists is taken over; so is, always, what a patch concerns.
func (a *api) create(ctx context.Context, c change, upsert bool) (*unstructured.Unstructured, error) {
	client, _, err := a.resourceFor(c.inputs)
	if err != nil {
		return nil, err
	}
	if upsert {
		return apply(ctx, client, c)
	}
	ctx, cancel := writing(ctx)
	defer cancel()
	return client.Create(ctx, c.inputs, metav1.CreateOptions{FieldManager: createManager, DryRun: c.dryRun()})
}

// writing gives a write that is under way when the engine cancels a moment to end: the server may have done it already,
// and an object must not be lost to the state.
func writing(ctx context.Context) (context.Context, context.CancelFunc) {
	write, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(reachTimeout, cancel) })
	return write, func() { stop(); cancel() }
}

// update changes an object to new inputs.
func (a *api) update(ctx context.Context, c change, name string) (live, updated *unstructured.Unstructured, err error) {
	client, _, err := a.resourceFor(c.inputs)
	if err != nil {
		return nil, nil, err
	}
	if live, err = get(ctx, client, name); err != nil {
		return nil, nil, err
	}
	if clientSide(live).Len() > 0 && !isPatch(c.urn, c.inputs.GetKind()) {
		// A dry run cannot take the fields over first.
		if c.preview {
			c.force = true
		} else if live, err = takeOver(ctx, client, live, c.fieldManager); err != nil {
			return nil, nil, err
		}
	}
	if len(live.GetManagedFields()) == 0 {
		c.force = true // Made before there were managers.
	}
	if err := keepIgnored(c, live); err != nil {
		return nil, nil, err
	}
	updated, err = apply(ctx, client, c)
	return live, updated, err
}

func apply(
	ctx context.Context, client dynamic.ResourceInterface, c change,
) (*unstructured.Unstructured, error) {
	body, err := yaml.Marshal(c.inputs.Object)
	if err != nil {
		return nil, err
	}
	ctx, cancel := writing(ctx)
	defer cancel()
	applied, err := client.Patch(ctx, c.inputs.GetName(), types.ApplyPatchType, body, metav1.PatchOptions{
		FieldManager: c.fieldManager, Force: &c.force, DryRun: c.dryRun(),
	})
	if apierrors.IsConflict(err) {
		return nil, fmt.Errorf("another field manager than %s owns these fields "+
			"(the annotation %s: \"true\" takes them over): %w", c.fieldManager, annotationPatchForce, err)
	}
	return applied, err
}

// clientSide names the managers of an object that wrote it without an apply.
func clientSide(live *unstructured.Unstructured) sets.Set[string] {
	managers := sets.New[string]()
	for _, entry := range live.GetManagedFields() {
		if entry.Operation == metav1.ManagedFieldsOperationUpdate && entry.Subresource == "" &&
			slices.ContainsFunc(clientSideManagers, func(p string) bool { return strings.HasPrefix(entry.Manager, p) }) {
			managers.Insert(entry.Manager)
		}
	}
	return managers
}

// takeOver makes the fields of client-side managers an apply's own, so that it can remove them too. A controller may
// write the object's status in between: then it tries again.
func takeOver(
	ctx context.Context, client dynamic.ResourceInterface, live *unstructured.Unstructured, fieldManager string,
) (*unstructured.Unstructured, error) {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		patch, err := csaupgrade.UpgradeManagedFieldsPatch(live, clientSide(live), fieldManager)
		if err != nil || patch == nil {
			return err
		}
		patchCtx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		name := live.GetName()
		patched, err := client.Patch(patchCtx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
		if err == nil {
			live = patched
		} else if apierrors.IsConflict(err) {
			if now, getErr := get(ctx, client, name); getErr == nil {
				live = now
			}
		}
		return err
	})
	return live, err
}

// keepIgnored puts the cluster's value in the place of each input that ignoreChanges names, or leaves the field alone
// if it is someone else's.
func keepIgnored(c change, live *unstructured.Unstructured) error {
	for _, text := range c.ignoreChanges {
		parsed, err := resource.ParsePropertyPath(text)
		if err != nil {
			return fmt.Errorf("ignoreChanges: %q is not a property path: %w", text, err)
		}
		at := make([]string, len(parsed))
		for i, step := range parsed {
			key, ok := step.(string)
			if !ok {
				return fmt.Errorf("ignoreChanges: %q goes into a list; name the whole list", text)
			}
			at[i] = key
		}
		ours, theirs := owners(live, c.fieldManager, at)
		if theirs && !ours {
			unstructured.RemoveNestedField(c.inputs.Object, at...)
		} else if value, ok, err := unstructured.NestedFieldCopy(live.Object, at...); err == nil && ok {
			if err := unstructured.SetNestedField(c.inputs.Object, value, at...); err != nil {
				return fmt.Errorf("ignoreChanges: %q: %w", text, err)
			}
		}
	}
	return nil
}

// owners says who manages a field: this manager, others.
func owners(live *unstructured.Unstructured, fieldManager string, at []string) (ours, theirs bool) {
	for _, entry := range live.GetManagedFields() {
		var fields any
		if entry.FieldsV1 == nil || json.Unmarshal(entry.FieldsV1.Raw, &fields) != nil {
			continue
		}
		for _, key := range at {
			fields = field(fields, "f:"+key)
		}
		if fields != nil {
			ours = ours || entry.Manager == fieldManager
			theirs = theirs || entry.Manager != fieldManager
		}
	}
	return ours, theirs
}

// relinquish gives up all fields that a manager has of an object. Fields that are then nobody's go away.
func (a *api) relinquish(ctx context.Context, object *unstructured.Unstructured, fieldManager string) error {
	client, _, err := a.resourceFor(object)
	if err != nil {
		return err
	}
	identity := &unstructured.Unstructured{Object: map[string]any{}}
	identity.SetAPIVersion(object.GetAPIVersion())
	identity.SetKind(object.GetKind())
	identity.SetNamespace(object.GetNamespace())
	identity.SetName(object.GetName())
	_, err = apply(ctx, client, change{inputs: identity, fieldManager: fieldManager})
	return err
}

// remove asks for an object's deletion; it is nil-safe for objects and kinds that are gone already.
func (a *api) remove(
	ctx context.Context, object *unstructured.Unstructured, propagation metav1.DeletionPropagation,
) (gone bool, err error) {
	client, _, err := a.resourceFor(object)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		err = client.Delete(ctx, object.GetName(), metav1.DeleteOptions{PropagationPolicy: &propagation})
	}
	if isGone(err) {
		return true, nil
	}
	return false, err
}

// read gets the live object.
func (a *api) read(ctx context.Context, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	client, _, err := a.resourceFor(object)
	if err != nil {
		return nil, err
	}
	return get(ctx, client, object.GetName())
}

func get(ctx context.Context, client dynamic.ResourceInterface, name string) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return client.Get(ctx, name, metav1.GetOptions{})
}

// isGone says whether an error means that an object, or its kind altogether, is not there.
func isGone(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }

// noNamespace says whether an error means that the namespace for a new object does not exist (yet).
func noNamespace(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && apierrors.IsNotFound(err) && status.Status().Details != nil &&
		status.Status().Details.Kind == "namespaces"
}
