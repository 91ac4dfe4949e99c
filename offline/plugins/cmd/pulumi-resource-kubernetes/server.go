package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pulumi/pulumi/sdk/v3/go/common/diag"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/rpcutil/rpcerror"
	"github.com/pulumi/pulumi/sdk/v3/go/pulumi/provider"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/structpb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/sets"
)

// server answers the engine.
type server struct {
	pulumirpc.UnimplementedResourceProviderServer

	host   *provider.HostClient
	ctx    context.Context // until the engine cancels
	cancel context.CancelFunc

	config      config
	api         *api  // nil if there is no cluster to reach
	unreachable error // why
}

func newServer(host *provider.HostClient) *server {
	s := &server{host: host, unreachable: errors.New("the provider is not configured")}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *server) GetPluginInfo(context.Context, *emptypb.Empty) (*pulumirpc.PluginInfo, error) {
	return &pulumirpc.PluginInfo{Version: version}, nil
}

// The SDK knows the types; the engine asks for no more than a name.
func (s *server) GetSchema(
	context.Context, *pulumirpc.GetSchemaRequest,
) (*pulumirpc.GetSchemaResponse, error) {
	return &pulumirpc.GetSchemaResponse{Schema: fmt.Sprintf(`{"name":"kubernetes","version":%q}`, version)}, nil
}

func (s *server) Attach(_ context.Context, req *pulumirpc.PluginAttach) (*emptypb.Empty, error) {
	host, err := provider.NewHostClient(req.GetAddress())
	s.host = host
	return &emptypb.Empty{}, err
}

// Cancel ends all waits. What they waited for is kept in the state, as not ready.
func (s *server) Cancel(context.Context, *emptypb.Empty) (*emptypb.Empty, error) {
	s.cancel()
	return &emptypb.Empty{}, nil
}

func notServedError(what string) error {
	return fmt.Errorf("the offline kubernetes plugin does not serve %s: the released plugin %s does", what, version)
}

func (s *server) Invoke(_ context.Context, req *pulumirpc.InvokeRequest) (*pulumirpc.InvokeResponse, error) {
	return nil, notServedError(req.GetTok())
}

func (s *server) Construct(_ context.Context, req *pulumirpc.ConstructRequest) (*pulumirpc.ConstructResponse, error) {
	return nil, notServedError(req.GetType())
}

func (s *server) CheckConfig(_ context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	news, err := providerInputs(req.GetNews())
	if err != nil {
		return nil, err
	}
	return &pulumirpc.CheckResponse{Inputs: req.GetNews(), Failures: checkProvider(news)}, nil
}

func (s *server) DiffConfig(_ context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	olds, err := providerInputs(req.GetOlds())
	if err != nil {
		return nil, err
	}
	news, err := providerInputs(req.GetNews())
	if err != nil {
		return nil, err
	}
	return diffProvider(olds, news)
}

func providerInputs(props *structpb.Struct) (resource.PropertyMap, error) {
	return plugin.UnmarshalProperties(props, plugin.MarshalOptions{KeepUnknowns: true})
}

func (s *server) Configure(_ context.Context, req *pulumirpc.ConfigureRequest) (*pulumirpc.ConfigureResponse, error) {
	settings := settings(req.GetVariables())
	s.config = settings.parse()
	client, namespace, err := settings.client()
	if namespace != "" {
		s.config.namespace = namespace
	}
	if err == nil {
		s.api, err = connect(s.ctx, client)
	} else if !errors.As(err, &noCluster{}) {
		return nil, err
	}
	s.unreachable = err
	return &pulumirpc.ConfigureResponse{
		AcceptSecrets: true, SupportsPreview: true, SupportsAutonamingConfiguration: true,
	}, nil
}

func (s *server) Check(ctx context.Context, req *pulumirpc.CheckRequest) (*pulumirpc.CheckResponse, error) {
	urn := resource.URN(req.GetUrn())
	if s.api == nil && s.config.skipUpdateUnreachable {
		s.log(diag.Warning, urn, "the cluster cannot be reached: left as it is (skipUpdateUnreachable)")
		return &pulumirpc.CheckResponse{Inputs: req.GetOlds()}, nil
	}
	oldProps, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	newProps, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	olds, news := toObject(oldProps), normalize(toObject(newProps))
	if news.GetKind() == "" || news.GetAPIVersion() == "" {
		apiVersion, kind, err := apiVersionAndKind(urn)
		if err != nil {
			return nil, err
		}
		news.SetAPIVersion(apiVersion)
		news.SetKind(kind)
	}

	var failures []*pulumirpc.CheckFailure
	fail := func(property, reason string) {
		failures = append(failures, &pulumirpc.CheckFailure{Property: property, Reason: reason})
	}
	switch {
	case strings.HasSuffix(news.GetKind(), "List") && news.Object["items"] != nil:
		return nil, notServedError("lists; name their objects one by one, which")
	case text(field(news.Object, "metadata", "generateName")) != "" && !hasName(news):
		fail("metadata.generateName", "server-side apply needs a name: set metadata.name, or none of both")
	case hasName(news):
	case isPatch(urn, news.GetKind()):
		fail("metadata.name", "a Patch resource needs the name of the object that it concerns")
	case len(olds.Object) > 0 && annotationTrue(olds, annotationAutonamed):
		setMetadata(news, olds.GetName(), "name")
		setMetadata(news, "true", "annotations", annotationAutonamed)
	case len(olds.Object) == 0:
		name, err := autoname(urn, req)
		if err != nil {
			return nil, err
		}
		setMetadata(news, name, "name")
		setMetadata(news, "true", "annotations", annotationAutonamed)
	}
	for _, name := range annotationsNotServed {
		if annotation(news, name) != "" {
			fail(resource.PropertyPath{"metadata", "annotations", name}.String(), notServedError("this annotation").Error())
		}
	}
	if s.config.namespace != "" && noValue(field(news.Object, "metadata", "namespace")) &&
		s.api.namespaced(news.GroupVersionKind()) {
		setMetadata(news, s.config.namespace, "namespace")
	}

	checked := toProperties(news)
	markSecrets(checked, newProps)
	inputs, err := marshal(checked)
	return &pulumirpc.CheckResponse{Inputs: inputs, Failures: failures}, err
}

func noValue(value any) bool { return value == nil || value == "" }

func autoname(urn resource.URN, req *pulumirpc.CheckRequest) (string, error) {
	if options := req.GetAutonaming(); options != nil {
		if options.GetMode() == pulumirpc.CheckRequest_AutonamingOptions_DISABLE {
			return "", errors.New("metadata.name: a name is needed, because automatic names are switched off")
		}
		return options.GetProposedName(), nil
	}
	return resource.NewUniqueName(req.GetRandomSeed(), urn.Name()+"-", 0, 0, nil)
}

func (s *server) Diff(_ context.Context, req *pulumirpc.DiffRequest) (*pulumirpc.DiffResponse, error) {
	urn := resource.URN(req.GetUrn())
	state, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	newProps, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	// What counts is the cluster's version of what the inputs had set: so a refresh finds changes made by others.
	oldInputs, live := parseCheckpoint(state)
	olds := &unstructured.Unstructured{Object: prune(live.Object, normalize(oldInputs).Object).(map[string]any)}
	news := normalize(toObject(newProps))
	for _, object := range []*unstructured.Unstructured{olds, news} {
		if s.api.namespaced(news.GroupVersionKind()) {
			if noValue(field(object.Object, "metadata", "namespace")) {
				setMetadata(object, metav1.NamespaceDefault, "namespace")
			}
		} else {
			unstructured.RemoveNestedField(object.Object, "metadata", "namespace")
		}
	}
	if olds.GetKind() == "" {
		olds.SetGroupVersionKind(news.GroupVersionKind())
	}
	if hasName(news) {
		setMetadata(olds, live.GetName(), "name")
	}

	diffs := compare(olds.Object, news.Object, s.config.immutable(urn, news))
	if err := ignore(diffs, req.GetIgnoreChanges()); err != nil {
		return nil, err
	}
	resp := &pulumirpc.DiffResponse{
		Changes: pulumirpc.DiffResponse_DIFF_NONE, HasDetailedDiff: true, DetailedDiff: diffs,
	}
	for at, difference := range diffs {
		resp.Changes = pulumirpc.DiffResponse_DIFF_SOME
		switch difference.Kind {
		case pulumirpc.PropertyDiff_ADD_REPLACE, pulumirpc.PropertyDiff_DELETE_REPLACE,
			pulumirpc.PropertyDiff_UPDATE_REPLACE:
			resp.Replaces = append(resp.Replaces, at)
		}
	}
	// Two objects cannot have one name.
	resp.DeleteBeforeReplace = len(resp.Replaces) > 0 && hasName(news) && !annotationTrue(news, annotationAutonamed) &&
		news.GetName() == live.GetName() && news.GetNamespace() == live.GetNamespace()
	return resp, nil
}

func (s *server) Create(_ context.Context, req *pulumirpc.CreateRequest) (*pulumirpc.CreateResponse, error) {
	urn, preview := resource.URN(req.GetUrn()), req.GetPreview()
	props, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	inputs := toObject(props)
	asIs := &pulumirpc.CreateResponse{Properties: req.GetProperties()}
	patch := isPatch(urn, inputs.GetKind())
	if preview && (s.api == nil || patch || hasUnknown(inputs.Object) || !s.api.knows(inputs)) {
		return asIs, nil
	}
	if s.api == nil {
		return nil, s.unreachableError()
	}

	manager, err := fieldManager(inputs, nil)
	if err != nil {
		return nil, err
	}
	c := change{
		urn: urn, inputs: inputs, fieldManager: manager, preview: preview,
		force: preview || s.config.patchForce || annotationTrue(inputs, annotationPatchForce),
	}
	upsert := patch || s.config.upsert
	live, err := s.createWithRetries(c, upsert)
	if err != nil {
		if preview && (apierrors.IsForbidden(err) || apierrors.IsAlreadyExists(err) || noNamespace(err) ||
			upsert && keepsOldValue(err) ||
			apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "dry run")) {
			return asIs, nil
		}
		switch {
		case meta.IsNoMatchError(err):
			err = fmt.Errorf("%w (is its CustomResourceDefinition created before it?)", err)
		case apierrors.IsAlreadyExists(err):
			err = fmt.Errorf("%w (upsertExistingObjects on the provider takes over what exists; pulumi import adopts it; "+
				"a Patch resource changes only some of its fields)", err)
		}
		return nil, fmt.Errorf("%s was not created: %w", describe(inputs), err)
	}
	if preview {
		delete(live.Object, "status")
	} else {
		live, err = s.await(urn, inputs, live, false, req.GetTimeout())
	}
	outputs, marshalErr := marshal(checkpoint(inputs, live, props, inputs.GetAPIVersion(), manager))
	switch {
	case marshalErr != nil:
		return nil, marshalErr
	case err != nil:
		return nil, initFailed(objectID(live), err, outputs, nil)
	case preview:
		return &pulumirpc.CreateResponse{Properties: outputs}, nil
	}
	if inputs.GetKind() == "CustomResourceDefinition" {
		s.api.mapper.Reset()
	}
	return &pulumirpc.CreateResponse{Id: objectID(live), Properties: outputs}, nil
}

// keepsOldValue: an object of that name is there, and may not become this one. In the preview of a replacement that is no
// failure, since the old object will be deleted before.
func keepsOldValue(err error) bool {
	why := err.Error()
	return apierrors.IsInvalid(err) && (strings.Contains(why, "immutable") ||
		strings.Contains(why, "Forbidden: updates to ") && strings.Contains(why, " are forbidden"))
}

// createWithRetries forgives what other resources of the same program may still bring: a namespace, a custom kind.
func (s *server) createWithRetries(c change, upsert bool) (*unstructured.Unstructured, error) {
	wait := time.Second
	for try := 1; ; try++ {
		live, err := s.api.create(s.ctx, c, upsert)
		if !isGone(err) || c.preview && noNamespace(err) || try == 6 {
			s.logStatus(diag.Info, c.urn, "")
			return live, err
		}
		s.logStatus(diag.Info, c.urn, fmt.Sprintf("not created, trying again in %s: %v", wait, err))
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return nil, err
		}
		wait *= 2
	}
}

func (s *server) Read(_ context.Context, req *pulumirpc.ReadRequest) (*pulumirpc.ReadResponse, error) {
	urn := resource.URN(req.GetUrn())
	gone := &pulumirpc.ReadResponse{}
	if s.api == nil {
		switch {
		case s.config.deleteUnreachable:
			s.log(diag.Warning, urn, fmt.Sprintf(
				"taken for deleted, because the cluster cannot be reached (deleteUnreachable): %v", s.unreachable))
			return gone, nil
		case s.config.skipUpdateUnreachable:
			s.log(diag.Warning, urn, fmt.Sprintf(
				"not refreshed, because the cluster cannot be reached (skipUpdateUnreachable): %v", s.unreachable))
			return &pulumirpc.ReadResponse{Id: req.GetId(), Properties: req.GetProperties(), Inputs: req.GetInputs()}, nil
		}
		return nil, s.goneError()
	}
	state, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	inputProps, err := unmarshal(req.GetInputs())
	if err != nil {
		return nil, err
	}
	namespace, name := parseID(req.GetId())
	if name == "" {
		return nil, fmt.Errorf("%q is no ID of a Kubernetes object: NAMESPACE/NAME or NAME is expected", req.GetId())
	}
	oldInputs := normalize(toObject(inputProps))
	_, oldLive := parseCheckpoint(state)
	adopted := oldInputs.GetKind() == "" && oldLive.GetKind() == ""

	// The object to look for.
	identity := &unstructured.Unstructured{Object: map[string]any{}}
	switch {
	case adopted:
		apiVersion, kind, err := apiVersionAndKind(urn)
		if err != nil {
			return nil, err
		}
		identity.SetAPIVersion(apiVersion)
		identity.SetKind(kind)
	case oldInputs.GetKind() == "":
		identity.SetGroupVersionKind(oldLive.GroupVersionKind())
	default:
		identity.SetGroupVersionKind(oldInputs.GroupVersionKind())
	}
	if in := oldInputs.GetNamespace(); in != "" {
		namespace = in
	}
	identity.SetNamespace(namespace)
	identity.SetName(name)

	live, err := s.api.read(s.ctx, identity)
	if isGone(err) {
		return gone, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s could not be read: %w", describe(identity), err)
	}
	var inputs *unstructured.Unstructured
	if adopted {
		inputs = adoptedInputs(live)
	} else {
		inputs = &unstructured.Unstructured{Object: prune(live.Object, oldInputs.Object).(map[string]any)}
		if kind, ok := readyKind(oldInputs, live); ok {
			err = s.api.checkReady(s.ctx, kind, live)
		}
	}

	manager, managerErr := fieldManager(oldInputs, state)
	if managerErr != nil {
		return nil, managerErr
	}
	newState, err2 := marshal(checkpoint(inputs, live, inputProps, initialAPIVersion(state, identity), manager))
	newProps := toProperties(inputs)
	markSecrets(newProps, inputProps)
	newInputs, err3 := marshal(newProps)
	if err := errors.Join(err2, err3); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, initFailed(req.GetId(), err, newState, newInputs)
	}
	return &pulumirpc.ReadResponse{Id: req.GetId(), Properties: newState, Inputs: newInputs}, nil
}

// adoptedInputs makes inputs of an object that some other tool made: all but what the cluster has added.
func adoptedInputs(live *unstructured.Unstructured) *unstructured.Unstructured {
	inputs := live.DeepCopy()
	dropServerFields(inputs)
	delete(inputs.Object, "status")
	for _, name := range []string{
		"deployment.kubernetes.io/revision", "kubectl.kubernetes.io/last-applied-configuration",
	} {
		unstructured.RemoveNestedField(inputs.Object, "metadata", "annotations", name)
	}
	return inputs
}

func (s *server) Update(_ context.Context, req *pulumirpc.UpdateRequest) (*pulumirpc.UpdateResponse, error) {
	urn, preview := resource.URN(req.GetUrn()), req.GetPreview()
	state, err := unmarshal(req.GetOlds())
	if err != nil {
		return nil, err
	}
	props, err := unmarshal(req.GetNews())
	if err != nil {
		return nil, err
	}
	inputs := normalize(toObject(props))
	asIs := &pulumirpc.UpdateResponse{Properties: req.GetNews()}
	if preview && (s.api == nil || hasUnknown(inputs.Object) || !s.api.knows(inputs)) {
		return asIs, nil
	}
	if s.api == nil {
		return nil, s.unreachableError()
	}

	oldInputs, oldLive := parseCheckpoint(state)
	oldManager, err := fieldManager(oldInputs, state)
	if err != nil {
		return nil, err
	}
	manager, err := fieldManager(inputs, state)
	if err != nil {
		return nil, err
	}
	c := change{
		urn: urn, inputs: inputs, fieldManager: manager, preview: preview, ignoreChanges: req.GetIgnoreChanges(),
		force: s.config.patchForce || annotationTrue(inputs, annotationPatchForce),
	}
	_, live, err := s.api.update(s.ctx, c, oldLive.GetName())
	switch {
	case err == nil && !preview:
		live, err = s.await(urn, inputs, live, true, req.GetTimeout())
	case err == nil:
	case preview && apierrors.IsForbidden(err):
		return asIs, nil
	case isGone(err):
		return nil, fmt.Errorf("%s was not updated (pulumi refresh finds out what is left): %w", describe(inputs), err)
	default:
		err = fmt.Errorf("%s was not updated: %w", describe(inputs), err)
		var readErr error
		if live, readErr = s.api.read(s.ctx, oldLive); readErr != nil {
			return nil, errors.Join(err, readErr)
		}
	}
	outputs, marshalErr := marshal(checkpoint(inputs, live, props, initialAPIVersion(state, oldInputs), manager))
	if marshalErr != nil {
		return nil, marshalErr
	}
	if err != nil {
		return nil, initFailed(objectID(live), err, outputs, nil)
	}
	if !preview && manager != oldManager {
		if err := s.api.relinquish(s.ctx, live, oldManager); err != nil {
			return nil, err
		}
	}
	return &pulumirpc.UpdateResponse{Properties: outputs}, nil
}

// Kinds that skipAwait lets be deleted without a wait.
var deletedUnawaited = sets.New("DaemonSet", "Deployment", "Job", "Namespace", "Pod", "StatefulSet")

func (s *server) Delete(_ context.Context, req *pulumirpc.DeleteRequest) (*emptypb.Empty, error) {
	urn, done := resource.URN(req.GetUrn()), &emptypb.Empty{}
	if s.api == nil {
		if s.config.deleteUnreachable {
			s.log(diag.Warning, urn, fmt.Sprintf(
				"taken for deleted, because the cluster cannot be reached (deleteUnreachable): %v", s.unreachable))
			return done, nil
		}
		return nil, s.goneError()
	}
	state, err := unmarshal(req.GetProperties())
	if err != nil {
		return nil, err
	}
	inputs, live := parseCheckpoint(state)
	manager, err := fieldManager(inputs, state)
	if err != nil {
		return nil, err
	}

	if isPatch(urn, inputs.GetKind()) {
		// An apply would make the object anew.
		if _, err := s.api.read(s.ctx, live); isGone(err) {
			return done, nil
		}
		err := s.api.relinquish(s.ctx, live, manager)
		if apierrors.IsInvalid(err) {
			err = fmt.Errorf("nobody else manages fields that %s needs; give them to another manager, "+
				"or set the retainOnDelete option: %w", describe(live), err)
		}
		return done, err
	}

	propagation := metav1.DeletePropagationForeground
	switch strings.ToLower(annotation(inputs, annotationPropagation)) {
	case "orphan":
		propagation = metav1.DeletePropagationOrphan
	case "background":
		propagation = metav1.DeletePropagationBackground
	}
	gone, err := s.api.remove(s.ctx, live, propagation)
	if err != nil {
		return nil, fmt.Errorf("%s was not deleted: %w", describe(live), err)
	}
	if gone || annotationTrue(inputs, annotationSkipAwait) && deletedUnawaited.Has(inputs.GetKind()) {
		return done, nil
	}
	err = s.api.awaitGone(s.ctx, live, timeout(req.GetTimeout(), inputs), s.reporter(urn))
	var left *notReady
	if !errors.As(err, &left) {
		return done, err
	}
	outputs, err := marshal(checkpoint(inputs, left.object, state, initialAPIVersion(state, inputs), manager))
	if err != nil {
		return nil, err
	}
	return nil, initFailed(objectID(live), left, outputs, nil)
}

// await waits until an object is ready, and says so while it does.
func (s *server) await(
	urn resource.URN, inputs, live *unstructured.Unstructured, updating bool, seconds float64,
) (*unstructured.Unstructured, error) {
	kind, ok := readyKind(inputs, live)
	if !ok {
		return live, nil
	}
	live, err := s.api.awaitReady(s.ctx, kind, live, updating, timeout(seconds, inputs), s.reporter(urn))
	s.logStatus(diag.Info, urn, "")
	return live, err
}

// timeout is what customTimeouts, or else the annotation, allow; 0 if there is neither.
func timeout(seconds float64, inputs *unstructured.Unstructured) time.Duration {
	if seconds == 0 {
		seconds, _ = strconv.ParseFloat(annotation(inputs, annotationTimeout), 64)
	}
	return time.Duration(seconds * float64(time.Second))
}

// reporter shows each line once, and the status again after a warning took its place.
func (s *server) reporter(urn resource.URN) reporter {
	said, last := sets.New[string](), ""
	return func(status string, warnings []string) {
		for _, warning := range warnings {
			if !said.Has(warning) {
				said.Insert(warning)
				s.logStatus(diag.Warning, urn, warning)
			}
		}
		if status != last {
			last = status
			s.logStatus(diag.Info, urn, status)
		}
	}
}

func (s *server) log(severity diag.Severity, urn resource.URN, message string) {
	if s.host != nil {
		_ = s.host.Log(s.ctx, severity, urn, message)
	}
}

func (s *server) logStatus(severity diag.Severity, urn resource.URN, message string) {
	if s.host != nil {
		_ = s.host.LogStatus(s.ctx, severity, urn, message)
	}
}

func (s *server) unreachableError() error {
	return fmt.Errorf("the Kubernetes cluster cannot be reached: %w", s.unreachable)
}

// goneError is for objects that may be gone with their cluster.
func (s *server) goneError() error {
	return fmt.Errorf("%w; if it is gone for good, PULUMI_K8S_DELETE_UNREACHABLE=true drops its objects from the state",
		s.unreachableError())
}

// initFailed tells the engine to keep an object that exists but is not what was asked for.
func initFailed(id string, err error, outputs, inputs *structpb.Struct) error {
	detail := &pulumirpc.ErrorResourceInitFailed{
		Id: id, Properties: outputs, Reasons: []string{err.Error()}, Inputs: inputs,
	}
	var left *notReady
	if errors.As(err, &left) {
		detail.Reasons = append(detail.Reasons, left.reasons...)
	}
	return rpcerror.WithDetails(rpcerror.New(codes.Unknown, err.Error()), detail)
}

// fieldManager is the name that a resource's fields are applied under: the annotation's, the one in use, or a new one.
func fieldManager(inputs *unstructured.Unstructured, state resource.PropertyMap) (string, error) {
	if name := annotation(inputs, annotationFieldManager); name != "" {
		return name, nil
	}
	if name := state[keyFieldManager]; name.IsString() {
		return name.StringValue(), nil
	}
	return resource.NewUniqueName(nil, "pulumi-kubernetes-", 0, 0, nil)
}

func initialAPIVersion(state resource.PropertyMap, object *unstructured.Unstructured) string {
	if initial := state[keyInitialAPIVersion]; initial.IsString() {
		return initial.StringValue()
	}
	return object.GetAPIVersion()
}

func describe(object *unstructured.Unstructured) string {
	return fmt.Sprintf("%s %s", object.GetKind(), objectID(object))
}
